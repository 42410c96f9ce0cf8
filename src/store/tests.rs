//! The views over a Hub in memory, and over the embedded Hub with all layers below.

#[cfg(feature = "local-hub")]
mod full;
mod listing;
