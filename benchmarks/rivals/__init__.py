"""Methods of other papers, written from their formulas, so that they can be measured beside this package's own."""
