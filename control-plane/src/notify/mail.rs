//! Mail: how a message looks there, and the way to the server.
//!
//! Owns: headers, plain text, TLS on the way. Must not know: what happened.
//!
//! Invariants: there is TLS, or the server is this machine. What people wrote is one line each before it comes here, and headers are
//! encoded by the library, so that none of it can become a header.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use proto::types::Timestamp;

use super::http::PrepareError;
use super::message::Summary;
use crate::config::{Mail, MailSafety};

/// Why a mail was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailError {
    #[error("cannot write the mail")]
    Write(#[source] lettre::error::Error),
    #[error("the mail server did not take it")]
    Send(#[source] lettre::transport::smtp::Error),
}

/// Sends mail by one server.
pub(crate) struct Mailer {
    mail: Mail,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.mail.fmt(f)
    }
}

impl Mailer {
    pub(crate) fn new(mail: Mail, time_limit: Duration) -> Result<Self, PrepareError> {
        let tls = match mail.safety {
            MailSafety::Tls => Tls::Wrapper(parameters(&mail)?),
            MailSafety::StartTls => Tls::Required(parameters(&mail)?),
            MailSafety::None => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&mail.host)
            .port(mail.port)
            .tls(tls)
            .timeout(Some(time_limit));
        if let Some((user, password)) = &mail.login {
            builder = builder.credentials(Credentials::new(user.clone(), password.clone()));
        }
        Ok(Self { transport: builder.build(), mail })
    }

    pub(crate) async fn send(&self, id: &str, summary: &Summary, now: Timestamp) -> Result<(), MailError> {
        let message = write(&self.mail, id, summary, now).map_err(MailError::Write)?;
        self.transport.send(message).await.map(|_| ()).map_err(MailError::Send)
    }
}

fn parameters(mail: &Mail) -> Result<TlsParameters, PrepareError> {
    let mut builder = TlsParameters::builder(mail.host.clone());
    if let Some(pem) = &mail.authority {
        let certificate = Certificate::from_pem(pem).map_err(PrepareError::Mail)?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
    }
    builder.build().map_err(PrepareError::Mail)
}

fn write(mail: &Mail, id: &str, summary: &Summary, now: Timestamp) -> Result<Message, lettre::error::Error> {
    let Summary { title, facts, link } = summary;
    let mut lines = vec![title.clone(), String::new()];
    lines.extend(facts.iter().map(|(name, text)| format!("{name}: {text}")));
    if let Some(link) = link {
        lines.extend([String::new(), link.clone()]);
    }
    lines.push(String::new());
    let date: SystemTime = UNIX_EPOCH + Duration::from_millis(now.unix_ms().unsigned_abs());
    let automatic =
        HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
    let mut builder = Message::builder()
        .from(mail.from.clone())
        .subject(format!("[portcullis] {title}"))
        .date(date)
        // The same for each try, so that whoever gets it twice can see so.
        .message_id(Some(format!("<{id}@{}>", mail.from.email.domain())))
        .header(ContentType::TEXT_PLAIN)
        .raw_header(automatic);
    for to in &mail.to {
        builder = builder.to(to.clone());
    }
    builder.body(lines.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::super::message::summary;
    use super::super::message::tests::asked;
    use super::*;

    fn mail() -> Mail {
        Mail {
            host: "localhost".to_owned(),
            port: 25,
            safety: MailSafety::None,
            login: Some(("us".to_owned(), "hush".to_owned())),
            from: "Portcullis <gate@example.com>".parse().expect("an address"),
            to: vec!["ops@example.com".parse().expect("an address"), "b@example.com".parse().expect("one")],
            authority: None,
        }
    }

    #[test]
    fn how_a_mail_looks() {
        let summary = summary(&asked("langsame Abfrage: ü"), Some("https://console.test"));
        let now = Timestamp::from_unix_ms(1_795_000_000_123).expect("in range");
        let text = write(&mail(), "msg_7_41", &summary, now).expect("a mail").formatted();
        insta::assert_snapshot!(String::from_utf8(text).expect("text").replace('\r', ""));
    }

    #[test]
    fn nothing_that_people_write_is_a_header() {
        let evil = "x\r\nBcc: evil@example.com\r\n\r\n.\r\nMAIL FROM:<a@b>";
        let mut event = asked(evil);
        event.subject = evil.to_owned();
        let text =
            write(&mail(), "msg_7_41", &summary(&event, None), Timestamp::from_unix_ms(0).expect("in range"));
        let text = String::from_utf8(text.expect("a mail").formatted()).expect("text");
        let (headers, body) = text.split_once("\r\n\r\n").expect("headers and a body");
        let names: Vec<&str> = headers
            .split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .filter_map(|line| line.split_once(':').map(|(name, _)| name))
            .collect();
        assert!(!names.iter().any(|name| name.eq_ignore_ascii_case("bcc")), "{headers}");
        assert!(
            !body.contains("\r\nBcc") && !body.contains("\r\nMAIL") && !body.contains("\r\n.\r\n"),
            "{body}"
        );
        assert!(
            !format!("{:?}", Mailer::new(mail(), Duration::from_secs(1)).expect("usable")).contains("hush")
        );
    }
}
