"""An environment without what inference never reads: rules as data, their conditions, RECORD files kept true."""
