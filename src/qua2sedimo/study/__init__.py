"""A study folder: what was asked, what was found, and the stages between."""

from qua2sedimo.study.facade import Study as Study
