"""Search the best λ, rate and rank for a model and a file of labelled texts."""

import sys

import autolr


def main(model: str, data: str, out: str, trials: int = 24) -> None:
    """Search, print the verdict and write the report."""
    study = autolr.Study(
        model=model,
        data={"source": data},
        space={"ratio": {"low": 0.5, "high": 32}, "rank": [4, 8, 16]},
        budget={"trials": trials},
    )
    result = autolr.search(study, out)
    print(result.recipe.evidence.verdict)
    print("report:", autolr.write_report(result))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
