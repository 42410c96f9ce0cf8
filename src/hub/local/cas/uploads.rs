//! Upload of xorbs, and the query for one (Xet spec, 10.5 A).

use super::intake::{self, Intake};
use super::xorbs::{contains_sound, stored_len};
use super::{Error, authorize, blocking, check_prefix, parse_hash};
use crate::hub::local::{Site, body};
use crate::xet::Scope;
use crate::xet::xorb::MAX_SERIALISED;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use std::sync::Arc;

/// `POST /v1/xorbs/{prefix}/{hash}`.
pub(super) async fn post(
    State(site): State<Arc<Site>>,
    Path((prefix, hash)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<serde_json::Value>, Error> {
    let admitted =
        authorize(&site, &headers, Scope::Write).and_then(|_| check_prefix(&prefix)).and_then(|()| parse_hash(&hash));
    let hash = match admitted {
        Ok(hash) => hash,
        Err(error) => {
            body::drain(body, MAX_SERIALISED).await;
            return Err(error);
        }
    };
    let store = &site.shared.cas;
    let was_inserted = if contains_sound(store, hash).await? {
        body::drain(body, MAX_SERIALISED).await;
        false
    } else {
        intake::receive(store, &headers, body, MAX_SERIALISED, Intake::new(store, hash, true)).await?
    };
    Ok(Json(serde_json::json!({ "was_inserted": was_inserted })))
}

/// `HEAD /v1/xorbs/{prefix}/{hash}`.
pub(super) async fn head(
    State(site): State<Arc<Site>>,
    Path((prefix, hash)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    authorize(&site, &headers, Scope::Read)?;
    check_prefix(&prefix)?;
    let hash = parse_hash(&hash)?;
    let store = site.shared.cas.clone();
    let index = blocking(move || store.xorbs().find(&hash)).await?.ok_or(Error::NotFound("xorb"))?;
    Ok(super::head_of_len(stored_len(&index)))
}
