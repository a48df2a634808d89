//! `AgentService`: one stream per host.

use proto::wire::agent as wire;
use proto::wire::agent::agent_service_server::AgentService;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::session::Session;
use super::{Answers, Gate, admitted};

/// How many answers wait for a slow agent. Few, as a grant set says what is left of each grant when it is made.
const ANSWERS: usize = 2;

/// Answers for agents.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) gate: Gate,
    /// Held by each session: the control plane has stopped when the last of them is dropped.
    pub(crate) running: mpsc::Sender<()>,
}

#[tonic::async_trait]
impl AgentService for Agent {
    type SessionStream = Answers<wire::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = admitted(&request)?;
        let host = caller.host()?.clone();
        let (sender, receiver) = mpsc::channel(ANSWERS);
        let session = Session::new(self.gate.clone(), caller, host, request.into_inner(), sender);
        let running = self.running.clone();
        // A task of its own: what it has to write down at its end is written even when the agent is gone.
        tokio::spawn(async move {
            session.run().await;
            drop(running);
        });
        Ok(Response::new(receiver.into()))
    }
}
