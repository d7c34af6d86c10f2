"""Figures as picture files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from autolr.errors import AutoLRError, RunError
from autolr.report.figures import FIGURES
from autolr.report.figures.style import CARD, INK, THEMES
from autolr.rundir.result import SearchResult

Format = Literal["png", "svg"]
WIDTH = 960


def write_images(result: SearchResult, form: Format, folder: str | Path | None = None) -> list[Path]:
    """Write every figure that the search has something for as a picture.

    Args:
        result: the search.
        form: png or svg.
        folder: where to; None: `figures` in the run folder.

    Returns:
        The files written.

    Raises:
        AutoLRError: no renderer is installed.
        RunError: the search has nothing to show, or the folder cannot be written.
    """
    import plotly.graph_objects as go
    import plotly.io

    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise AutoLRError(
            f"--format {form}: pictures need a renderer: pip install kaleido; the page needs none (--format html)"
        ) from None
    drawn = {name: drawn for name, figure in FIGURES.items() if (drawn := figure.draw(result))}
    if not drawn:
        raise RunError(f"{result.folder}: this search has nothing to show yet")
    target = Path(folder) if folder is not None else result.folder / "figures"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"--out {target}: is a file; pictures need a folder") from None
    files = [target / f"{name}.{form}" for name in drawn]
    ink = THEMES["light"][INK]
    pictures = [go.Figure(json.loads(figure.to_json().replace(INK, ink))) for figure in drawn.values()]
    for picture in pictures:
        picture.update_layout(width=WIDTH, paper_bgcolor=CARD, plot_bgcolor=CARD, font_color=ink)
    try:
        plotly.io.write_images(pictures, files, format=form, scale=2 if form == "png" else 1)
    except RuntimeError as error:  # kaleido found no browser, or one that does not start
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AutoLRError(
            f"--format {form}: kaleido could not draw: {reason}; it needs Chrome or Chromium: install one (apt "
            "install chromium, or plotly_get_chrome), or name it: BROWSER_PATH=/path/to/chrome"
        ) from None
    return files
