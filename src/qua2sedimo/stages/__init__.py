"""The stages of a study, one module each: functions of a :class:`~qua2sedimo.study.Study`, which calls them."""
