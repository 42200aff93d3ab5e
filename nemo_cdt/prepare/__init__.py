"""From a data set's published files to rows that training reads: ``nemo-cdt prepare``."""
