"""The figures of a search: result in, Plotly figure out; None where the search has nothing to show for it.

import autolr

result = autolr.SearchResult.load("runs/reviews")
autolr.figures.convergence(result).show()
"""

from autolr.report.figures import convergence as convergence
from autolr.report.figures import cost as cost
from autolr.report.figures import effect as effect
from autolr.report.figures import figure as figure
from autolr.report.figures import foresight as foresight
from autolr.report.figures import gains as gains
from autolr.report.figures import history as history
from autolr.report.figures import importance as importance
from autolr.report.figures import kind_effect as kind_effect
from autolr.report.figures import ladder as ladder
from autolr.report.figures import memory as memory
from autolr.report.figures import rank_effect as rank_effect
from autolr.report.figures import rate_effect as rate_effect
from autolr.report.figures import rate_map as rate_map
from autolr.report.figures import steps_to_target as steps_to_target
from autolr.report.figures import targets_effect as targets_effect
from autolr.report.images import write_images as write_images
