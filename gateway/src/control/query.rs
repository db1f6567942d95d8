//! Query parameters and small JSON bodies, parsed strictly. An unknown name is an error that
//! suggests the most similar known one.

use super::error::{ApiError, unprocessable};
use axum::{
    body::Body,
    extract::{FromRequestParts, Query, RawPathParams},
};
use epsilon_api::{
    admin::{Data, Pagination},
    ids::{FunctionName, InvalidId, VersionNumber},
    suggest::nearest,
};
use epsilon_store::{Page, Paged};
use http::{StatusCode, Uri, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt::Display, str::FromStr};
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        ObjectBuilder, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
    },
};

/// Longest JSON body; archives are not read here.
const MAX_JSON: usize = 64 << 10;
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 500;

/// The only parameter in the path, parsed.
#[derive(Debug)]
pub(super) struct InPath<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for InPath<T>
where
    T: FromStr<Err = InvalidId>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let invalid = |message: String| unprocessable("INVALID_PARAMETER", message);
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|err| invalid(err.to_string()))?;
        let (_, text) = params
            .iter()
            .next()
            .ok_or_else(|| invalid("the path contains no parameter".to_owned()))?;
        text.parse().map(Self).map_err(|err: InvalidId| invalid(err.to_string()))
    }
}

/// A function's name and a version number in the path.
#[derive(Debug)]
pub(super) struct VersionInPath(pub(super) FunctionName, pub(super) VersionNumber);

impl<S: Send + Sync> FromRequestParts<S> for VersionInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let invalid = |message: String| unprocessable("INVALID_PARAMETER", message);
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|err| invalid(err.to_string()))?;
        let texts: Vec<&str> = params.iter().map(|(_, text)| text).collect();
        let [name, number] = texts[..] else {
            return Err(invalid("the path contains no version".into()));
        };
        let name = name.parse().map_err(|err: InvalidId| invalid(err.to_string()))?;
        let number = number.parse().map_err(|err: InvalidId| invalid(err.to_string()))?;
        Ok(Self(name, number))
    }
}

/// The query parameters of a request.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads all parameters; each must be one of `known`.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|err| unprocessable("INVALID_PARAMETER", err.body_text()))?;
        for (name, _) in &pairs {
            if !known.contains(&name.as_str()) {
                return Err(unknown("UNKNOWN_PARAMETER", "parameter", name, known));
            }
        }
        Ok(Self(pairs))
    }

    /// All values of one parameter.
    pub(super) fn all<T>(&self, name: &str) -> Result<Vec<T>, ApiError>
    where
        T: FromStr<Err: Display>,
    {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| {
                value.parse().map_err(|err: T::Err| {
                    unprocessable("INVALID_PARAMETER", format!("`{name}`: {err}"))
                })
            })
            .collect()
    }

    /// The value of a parameter that may be given once.
    pub(super) fn one<T>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T: FromStr<Err: Display>,
    {
        let mut values = self.all(name)?;
        if values.len() > 1 {
            let message = format!("`{name}` is given more than once");
            return Err(unprocessable("INVALID_PARAMETER", message));
        }
        Ok(values.pop())
    }

    /// The requested page of a list.
    pub(super) fn page(&self) -> Result<Page, ApiError> {
        let limit = self.one("limit")?.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let message = format!("`limit` must be between 1 and {MAX_PAGE}");
            return Err(unprocessable("INVALID_PARAMETER", message));
        }
        Ok(Page { cursor: self.one("cursor")?, limit })
    }
}

/// The parameters of every list.
pub(super) const PAGING: [&str; 2] = ["cursor", "limit"];

/// [`PAGING`] in the OpenAPI document.
pub(super) enum PageParams {}

impl IntoParams for PageParams {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let [cursor, limit] = PAGING;
        let text = ObjectBuilder::new().schema_type(Type::String);
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX_PAGE))
            .default(Some(PAGE.into()));
        let parameter = |name: &str, what: &str, schema: ObjectBuilder| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .description(Some(what))
                .schema(Some(schema))
                .build()
        };
        vec![
            parameter(cursor, "`pagination.next_cursor` of the previous page.", text),
            parameter(limit, "Longest page.", number),
        ]
    }
}

/// A page of a list, in its envelope: [`Data`] with the continuation that every list has.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed<T> {
    /// The items.
    data: Vec<T>,
    /// The continuation.
    pagination: Pagination,
}

/// A page of a list, in its envelope.
pub(super) fn listed<T>(part: Paged<T>) -> Listed<T> {
    let has_more = part.next.is_some();
    Listed { data: part.items, pagination: Pagination { next_cursor: part.next, has_more } }
}

/// An answer, in its envelope.
pub(super) fn data<T>(data: T) -> Data<T> {
    Data { data, pagination: None }
}

/// Reads a small JSON object; an empty body counts as an empty object.
pub(super) async fn json<T: DeserializeOwned>(body: Body, known: &[&str]) -> Result<T, ApiError> {
    let invalid = |message: String| unprocessable("INVALID_BODY", message);
    let bytes = match Limited::new(body, MAX_JSON).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(err) if err.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {MAX_JSON} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message));
        }
        Err(_) => return Err(invalid("the upload was cut before the body's end".to_owned())),
    };
    if bytes.is_empty() {
        return serde_json::from_str("{}").map_err(|err| invalid(err.to_string()));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|err| invalid(err.to_string()))?;
    let Value::Object(fields) = &value else {
        return Err(invalid("the body must be a JSON object".to_owned()));
    };
    if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown("UNKNOWN_FIELD", "field", name, known));
    }
    serde_path_to_error::deserialize(value)
        .map_err(|err| invalid(format!("`{}`: {}", err.path(), err.inner())))
}

fn unknown(code: &str, what: &str, name: &str, known: &[&str]) -> ApiError {
    let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    let error = unprocessable(code, format!("unknown {what} `{name}`"));
    match nearest(&name, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if known.is_empty() => error.hint(format!("this path has no {what}s")),
        None => error.hint(format!("known are `{}`", known.join("`, `"))),
    }
}
