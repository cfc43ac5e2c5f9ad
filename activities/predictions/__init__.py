"""The prediction log as control sees it: counted in SQL, compacted, removed when it is old. No Parquet is opened."""
