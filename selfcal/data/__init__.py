"""Jets in memory, their files, and the folds that keep measurements independent."""
