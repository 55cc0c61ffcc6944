"""Pipeline classes that make images or videos from text, labels or noise: built tiny, and taken through a study."""
