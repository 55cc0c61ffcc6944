"""The stages of a study, one module each: functions of a workspace."""
