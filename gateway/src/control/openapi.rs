//! What the OpenAPI document says of the control API as a whole, the answers that groups of routes
//! share, and bodies that have no type here. The rest is generated from the handlers and from the
//! types of their messages; `routes.rs` puts it together and serves it.

use epsilon_api::{error::ErrorEnvelope, ids::KeyId};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, InfoBuilder, KnownFormat, LicenseBuilder, ObjectBuilder,
        OpenApi, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, SchemaFormat, Type,
        path::Operation,
        schema::Components,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

const DESCRIPTION: &str = "\
Unknown parameters and fields are refused with the nearest known name. Every answer carries \
`x-epsilon-request-id`. A path or method that is not listed here is answered 404 `NOT_FOUND` or 405 \
`METHOD_NOT_ALLOWED`; a request that breaks HTTP or the limits of the listener, or is plain HTTP where it \
requires TLS, 400, 408, 414 or 431 before its path is looked at. git's smart HTTP below `/git/` is not part of this API.";

/// Answers of several routes: a status and the codes of its errors.
pub(super) type Answers = &'static [(&'static str, &'static str)];

/// Answers before any handler.
pub(super) const LISTENER: Answers = &[
    ("500", "`INTERNAL`: the platform failed; its log has the cause."),
    ("503", "`STARTING`, `NO_CAPACITY`: the gateway starts, or has no room for the connection."),
];
/// What all handlers check first.
pub(super) const PARAMETERS: Answers = &[("422", "`INVALID_PARAMETER`, `UNKNOWN_PARAMETER`")];
/// Answers of the check of the admin key, which may need the store.
pub(super) const KEY: Answers =
    &[("401", "`UNAUTHORIZED`: there is no valid key."), ("503", "`STORE_UNAVAILABLE`")];
/// Answers of the checks of a member and of the wait for its turn.
pub(super) const MEMBER: Answers = &[
    ("401", "`UNAUTHORIZED`: there is no valid token or credential."),
    ("403", "`CERTIFICATE_REQUIRED`"),
    ("429", "`TOO_MANY_MEMBERS`"),
    ("503", "`STORE_UNAVAILABLE`"),
    ("507", "`STORE_FULL`"),
];

/// Operations whose body may be left out.
const OPTIONAL_BODY: [&str; 2] = ["rollback", "promote"];

/// The document of these groups.
pub(super) fn of_groups(groups: impl IntoIterator<Item = OpenApi>) -> OpenApi {
    let bearer = |what: &str| {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(what));
        SecurityScheme::Http(scheme.build())
    };
    let components = ComponentsBuilder::new()
        .security_scheme("key", bearer("The admin key of a gateway."))
        .security_scheme("token", bearer("The fleet's token for VMs, or that for builders."))
        .security_scheme("credential", bearer("What a member gets when it joins."));
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0"));
    let info = InfoBuilder::new()
        .title("Epsilon control API")
        .version("1")
        .description(Some(DESCRIPTION))
        .license(Some(license.build()));
    let mut document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new("key", [""; 0])]))
        .build();
    for group in groups {
        document.merge(group);
    }
    loose_schemas(document.components.get_or_insert_default());
    document
}

/// Adds the answers to every route of a group. A route that has one of these statuses on its own
/// lists both reasons.
pub(super) fn answers<S>(mut group: OpenApiRouter<S>, tables: &[Answers]) -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    for operation in operations(group.get_openapi_mut()) {
        for (status, codes) in tables.iter().copied().flatten() {
            add(operation, status, codes);
        }
        let id = operation.operation_id.as_deref().unwrap_or_default();
        if let Some(RefOr::T(body)) = &mut operation.request_body
            && OPTIONAL_BODY.contains(&id)
        {
            body.required = Some(Required::False);
        }
    }
    group
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|path| {
        [&mut path.get, &mut path.put, &mut path.post, &mut path.delete].into_iter().flatten()
    })
}

fn add(operation: &mut Operation, status: &str, codes: &str) {
    let answers = &mut operation.responses.responses;
    if let Some(RefOr::T(answer)) = answers.get_mut(status) {
        if !is_error(answer) {
            return; // a handler's own form of this status, such as that of `/healthz`
        }
        answer.description = format!("{}; {codes}", answer.description.trim_end_matches('.'));
    } else {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(error_name())));
        let answer =
            ResponseBuilder::new().description(codes).content("application/json", body.build());
        answers.insert(status.to_owned(), answer.build().into());
    }
}

fn is_error(answer: &utoipa::openapi::Response) -> bool {
    let error = Ref::from_schema_name(error_name());
    answer.content.values().any(|content| match content {
        RefOr::T(content) => matches!(&content.schema, Some(RefOr::Ref(name)) if *name == error),
        RefOr::Ref(_) => false,
    })
}

fn error_name() -> String {
    ErrorEnvelope::name().into_owned()
}

/// Schemas that only parameters or the answers of groups refer to: those are not collected.
fn loose_schemas(components: &mut Components) {
    let mut schemas = vec![
        (error_name(), ErrorEnvelope::schema()),
        (KeyId::name().into_owned(), KeyId::schema()),
    ];
    ErrorEnvelope::schemas(&mut schemas);
    components.schemas.extend(schemas);
}

/// A tar.gz as a body.
pub(super) enum Archive {}

impl PartialSchema for Archive {
    fn schema() -> RefOr<Schema> {
        let binary = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(binary)).into()
    }
}

impl ToSchema for Archive {}

/// Any JSON object: the form is somebody else's.
pub(super) enum Payload {}

impl PartialSchema for Payload {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Object).into()
    }
}

impl ToSchema for Payload {}
