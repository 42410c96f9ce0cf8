//! `GET /api/whoami-v2` (Hub API spec, section 2).

use super::access::Caller;
use super::json::iso_time;
use super::{Call, reply};
use crate::hub::local::errors::ApiError;
use axum::response::Response;
use serde_json::json;

/// The user behind the token.
pub(super) fn answer(call: &Call) -> Result<Response, ApiError> {
    if !matches!(call.method().as_str(), "GET" | "HEAD") {
        return Err(ApiError::method_not_allowed("GET, HEAD"));
    }
    let name = call.caller.name().ok_or_else(ApiError::token_needed)?;
    let (id, display, role, created) = match &call.caller {
        Caller::User(holder) => (holder.user, holder.hint.as_str(), holder.role.as_str(), holder.created),
        Caller::Anonymous | Caller::Process => (0, "process", "write", 0),
    };
    reply(&json!({
        "type": "user",
        "id": format!("{id:024x}"),
        "name": name,
        "fullname": name,
        "email": null,
        "emailVerified": false,
        "isPro": false,
        "canPay": false,
        "avatarUrl": "",
        "orgs": [],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": display, "role": role, "createdAt": iso_time(created)},
        },
    }))
}
