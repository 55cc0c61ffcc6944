"""A study folder: its settings, its results, and the stages that produce them."""

from qua2sedimo.study.facade import Study as Study
