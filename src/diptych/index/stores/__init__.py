"""Where vectors are kept and searched: in files, or by an engine of others (``open_store``)."""
