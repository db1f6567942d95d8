//! What every program of Epsilon does first: settings from file, environment and flags; logging; signals.
