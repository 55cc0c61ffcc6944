"""From a study or an export to the plain data of a report or a model card."""
