from autolr.candidate import Candidate as Candidate
from autolr.errors import AutoLRError as AutoLRError
from autolr.foreign.export import export as export
from autolr.foreign.terms import lora_config as lora_config
from autolr.heads import Heads as Heads
from autolr.heads import heads as heads
from autolr.recipe import Recipe as Recipe
from autolr.report.figures import figure as figure
from autolr.report.page import write_report as write_report
from autolr.search.compare import compare as compare
from autolr.search.comparison import Comparison as Comparison
from autolr.search.result import SearchResult as SearchResult
from autolr.search.run import search as search
from autolr.study import Study as Study
from autolr.theory import Theory as Theory
from autolr.theory import theory as theory
from autolr.train.hub import push_to_hub as push_to_hub
from autolr.train.optimizer import create_optimizer as create_optimizer
from autolr.train.optimizer import parameter_groups as parameter_groups
from autolr.train.run import TrainResult as TrainResult
from autolr.train.run import train as train
from autolr.train.trainers import LogRates as LogRates
from autolr.train.trainers import RoleRates as RoleRates
from autolr.train.trainers import with_rates as with_rates
from autolr.tune.function import tune as tune
from autolr.tune.trainer import tune_trainer as tune_trainer

__version__: str
