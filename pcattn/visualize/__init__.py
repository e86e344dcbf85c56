"""Pictures, pages and a window of point clouds: truth, prediction, error, probability, attention."""
