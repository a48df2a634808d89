//! `AuditService`: the record, streamed.

use proto::types::Invalid;
use proto::wire::audit as wire;
use proto::wire::audit::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use super::{Answers, Gate, admitted, failed, invalid, stream};
use crate::audit::{Reader, Start};

/// The most events that `last` may ask for: what somebody looks at, not what somebody copies.
const LAST_MAX: u32 = 10_000;

/// Answers for the audit record.
#[derive(Clone, Debug)]
pub(crate) struct Audit(pub(crate) Gate);

#[tonic::async_trait]
impl AuditService for Audit {
    type TailStream = Answers<wire::TailResponse>;

    async fn tail(&self, request: Request<wire::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let caller = admitted(&request)?;
        let wire::TailRequest { after_position, follow, last } = request.into_inner();
        let start = match last {
            0 => Start::After(after_position),
            1..=LAST_MAX => Start::Last(last),
            _ => return Err(invalid(Invalid::new("last", format_args!("{last} is above {LAST_MAX}")))),
        };
        let mut reader = match Reader::open(self.0.store.clone(), start, follow).await {
            Ok(reader) => reader,
            Err(error) => return Err(self.0.answer(&caller, error).await),
        };
        let feed = |answers: tokio::sync::mpsc::Sender<Result<wire::TailResponse, Status>>| async move {
            loop {
                let page = reader.next().await.map_err(|error| failed(&error))?;
                if page.is_empty() {
                    return Ok(());
                }
                for event in page {
                    let answer = wire::TailResponse { event: Some(event.into()) };
                    if answers.send(Ok(answer)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        };
        Ok(Response::new(stream(self.0.clone(), caller, feed)))
    }
}
