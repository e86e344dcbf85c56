"""Pictures, pages and a window of point clouds: truth, prediction, error, probability, attention.

`scene` holds what is drawn; `montage` makes pictures of it, `page` a web page, `window` opens Open3D's window.
"""
