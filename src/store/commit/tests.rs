//! Commits over a Hub in memory: the vectors, refused and lost lines, foreign changes, and a model.

mod model;
mod orders;
mod queue;
mod vectors;
