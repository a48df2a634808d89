//! A SPIFFE Workload API on a unix socket: it speaks the protocol, and gives every caller the same certificate.
//!
//! The specification is "The SPIFFE Workload API"; the messages below have the fields of its `workload.proto` that are used.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// A trust domain's one signer.
pub struct Signer {
    key: KeyPair,
    params: CertificateParams,
}

impl Signer {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { key: KeyPair::generate()?, params })
    }

    /// Its bundle, in PEM.
    pub fn bundle(&self) -> Result<String> {
        Ok(self.params.self_signed(&self.key)?.pem())
    }

    fn svid(&self, id: &str) -> Result<Svid> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        Ok(Svid {
            spiffe_id: id.to_owned(),
            x509_svid: certificate.der().to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: self.params.self_signed(&self.key)?.der().to_vec(),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Svids {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// The server. It ends with whoever has it.
pub struct WorkloadApi {
    socket: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

impl WorkloadApi {
    /// Listens in this folder, and takes everybody for the workload with this id.
    pub fn start(folder: &Path, signer: &Signer, id: &str) -> Result<Self> {
        let socket = folder.join("workload-api.sock");
        let _ = fs::remove_file(&socket);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let api = Api(signer.svid(id)?);
        let listener = runtime.block_on(async { UnixListener::bind(&socket) }).context("cannot listen")?;
        runtime.spawn(async move {
            let served = tonic::transport::Server::builder().add_service(api);
            // It serves until the runtime is dropped.
            let _ = served.serve_with_incoming(UnixListenerStream::new(listener)).await;
        });
        Ok(Self { socket, _runtime: runtime })
    }

    /// What SPIFFE_ENDPOINT_SOCKET is set to.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

#[derive(Clone)]
struct Api(Svid);

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

type Later<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<http::Request<tonic::body::Body>> for Api {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Later<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            match request.uri().path() {
                "/SpiffeWorkloadAPI/FetchX509SVID" => {
                    Ok(Grpc::new(ProstCodec::default()).server_streaming(api, request).await)
                }
                _ => Ok(Status::unimplemented("only X.509-SVIDs are here").into_http()),
            }
        })
    }
}

impl ServerStreamingService<Nothing> for Api {
    type Response = Svids;
    type ResponseStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Svids, Status>> + Send>>;
    type Future = Later<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Nothing>) -> Self::Future {
        // By this a Workload API knows that nobody was talked into asking (5.1 of the specification).
        let is_meant = request.metadata().get("workload.spiffe.io").is_some_and(|value| value == "true");
        let svids = Svids { svids: vec![self.0.clone()] };
        Box::pin(async move {
            if !is_meant {
                return Err(Status::invalid_argument("security header missing from request"));
            }
            // The stream stays open: others would follow before this one ends.
            let first = tokio_stream::once(Ok(svids));
            let stream = tokio_stream::StreamExt::chain(first, tokio_stream::pending());
            Ok(Response::new(Box::pin(stream) as Self::ResponseStream))
        })
    }
}
