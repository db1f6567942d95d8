//! A call that can be sent to one VM after the other, as long as what was read of its body is kept.

use crate::invoke::replay::Lender;
use epsilon_api::body::BodyProgress;
use epsilon_api::body::CallBody;
use epsilon_api::error::VmError;
use epsilon_api::function::Version;
use epsilon_api::ids::RequestId;
use epsilon_api::vm::Call;
use epsilon_api::vm::InterimSink;
use http::Method;
use http::Request;
use http::request;
use std::sync::Arc;

/// A call that can be sent again, as long as the part of its body that was read is kept.
pub(crate) struct Outgoing {
    version: Arc<Version>,
    request_id: RequestId,
    head: request::Parts,
    body: Source,
    upload: Option<BodyProgress>,
    interim: Option<Arc<dyn InterimSink>>,
}

enum Source {
    /// Not lent to any VM so far.
    Whole(CallBody),
    /// Lent to at least one VM.
    Lent(Lender),
}

impl Outgoing {
    pub(crate) fn new(
        version: Arc<Version>,
        request_id: RequestId,
        request: Request<CallBody>,
        upload: Option<BodyProgress>,
    ) -> Self {
        let (head, body) = request.into_parts();
        Self { version, request_id, head, body: Source::Whole(body), upload, interim: None }
    }

    /// Sets where the function's interim answers go.
    pub(crate) fn with_interim(self, interim: Arc<dyn InterimSink>) -> Self {
        Self { interim: Some(interim), ..self }
    }

    /// The progress of the body, if it was not received completely yet.
    pub(crate) fn upload(&self) -> Option<&BodyProgress> {
        self.upload.as_ref()
    }

    /// The request's method.
    pub(crate) fn method(&self) -> &Method {
        &self.head.method
    }

    /// Whether the body can still be sent from its first byte.
    pub(crate) fn is_whole(&self) -> bool {
        match &self.body {
            Source::Whole(_) => true,
            Source::Lent(lender) => lender.is_whole(),
        }
    }

    /// The call for the last VM: everything is moved, nothing is stored. `None` if the body is used
    /// up.
    pub(crate) fn last(self) -> Option<Call> {
        let body = match self.body {
            Source::Whole(body) => body,
            Source::Lent(lender) => lender.give()?,
        };
        let Self { version, request_id, head, upload, interim, .. } = self;
        let request = Request::from_parts(head, body);
        Some(Call { version, request_id, may_wait: true, request, upload, interim })
    }

    /// The call for a VM after which another may be tried. `may_wait` as in [`Call`]. `None` if the
    /// body is used up.
    pub(crate) fn lend(mut self, may_wait: bool) -> Option<(Call, Self)> {
        let lender = match self.body {
            Source::Whole(body) => Lender::new(body),
            Source::Lent(lender) => lender,
        };
        let request = Request::from_parts(self.head.clone(), lender.lend()?);
        let call = Call {
            version: Arc::clone(&self.version),
            request_id: self.request_id.clone(),
            may_wait,
            request,
            upload: self.upload.clone(),
            interim: self.interim.clone(),
        };
        self.body = Source::Lent(lender);
        Some((call, self))
    }
}

/// The gateway's error for a VM's error: if a relay broke because of the request's own body, the
/// function is not at fault.
pub(crate) fn map_error(err: VmError) -> VmError {
    VmError::from_body_error(&err).unwrap_or(err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use epsilon_api::{
        body::{self, BodyTooLarge},
        units::Bytes,
    };
    use http_body::Body as _;
    use http_body_util::BodyExt;

    fn outgoing(body: CallBody) -> Outgoing {
        let version = Arc::new(testing::version("pay", 1));
        Outgoing::new(version, RequestId::random(), Request::new(body), None)
    }

    #[tokio::test]
    async fn an_untouched_body_can_be_lent_again() {
        let (call, outgoing) = outgoing(body::full("hello")).lend(false).unwrap();
        assert_eq!(call.request.body().size_hint().exact(), Some(5));
        drop(call);
        let (call, outgoing) = outgoing.lend(false).unwrap();
        drop(call);
        let call = outgoing.last().unwrap();
        assert_eq!(call.request.into_body().collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn a_read_body_is_stored_for_the_retry() {
        let (mut call, outgoing) = outgoing(body::full("hello")).lend(false).unwrap();
        call.request.body_mut().frame().await.unwrap().unwrap();
        drop(call);
        let call = outgoing.last().unwrap();
        assert_eq!(call.request.into_body().collect().await.unwrap().to_bytes(), "hello");
    }

    #[test]
    fn the_limit_is_found_under_other_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("user body")]
        struct Wrapped(#[source] BodyTooLarge);
        let err = VmError::FunctionCrashed {
            function: testing::version("pay", 1).function,
            cause: Box::new(Wrapped(BodyTooLarge { limit: Bytes(7) })),
        };
        assert!(matches!(map_error(err), VmError::BodyTooLarge { limit: Bytes(7) }));
        assert!(matches!(map_error(VmError::CallerGone), VmError::CallerGone));
    }
}
