"""Where a plan is made: the cast, the scores of its pair, and the shares at each moment."""

from klora.planning.cast import Cast, LayerView, Loras, Member
from klora.planning.files import FilePair, plan_files, planner_of_files
from klora.planning.planner import Planner, make_planner
from klora.planning.rewriting import check_base_models, rewritten
from klora.planning.sampled import delta_digest
from klora.planning.scoring import (
    Progress,
    content_hash,
    file_stamp,
    forget_scores,
    keep_scores_in,
    kept_scores,
    scores_of,
)
from klora.planning.shelf import folder_of_user

__all__ = [
    "Cast",
    "FilePair",
    "LayerView",
    "Loras",
    "Member",
    "Planner",
    "Progress",
    "check_base_models",
    "content_hash",
    "delta_digest",
    "file_stamp",
    "folder_of_user",
    "forget_scores",
    "keep_scores_in",
    "kept_scores",
    "make_planner",
    "plan_files",
    "planner_of_files",
    "rewritten",
    "scores_of",
]
