//! Commits over a Hub in memory: the vectors, refused and lost lines, changes by other clients, and a model.

mod metadata;
mod model;
mod modified;
mod orders;
mod queue;
mod vectors;
