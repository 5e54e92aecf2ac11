"""The parts of the suite: each module has `run(options: Options) -> PartReport`."""
