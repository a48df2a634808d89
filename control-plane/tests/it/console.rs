//! The console: who signs in with a browser, who does not, and what nobody can make a browser do.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use control_plane::config::{ConsoleConfig, IdentityProvider};
use control_plane::identity::authority::ServerName;
use proto::status::ErrorKind;
use proto::types::{AuditEvent, EventKind, SubjectRole};
use proto::wire::access::CreateRequestRequest;
use proto::wire::identity as wire;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

use super::browser::{Answer, Browser, ORIGIN, parameter};
use super::world::{PATIENCE, Trusted, World, refused, tls};
use crate::provider::{Key, TestProvider};

const SESSION: &str = "__Host-portcullis";
const ATTEMPT: &str = "__Host-portcullis-sign-in";
const CALLBACK: &str = "/sign-in/corp/callback";

fn configured() -> ConsoleConfig {
    ConsoleConfig {
        listen: vec!["127.0.0.1:0".parse().expect("valid")],
        origin: ORIGIN.to_owned(),
        authority: "console.test".to_owned(),
        name: ServerName::Dns("console.test".to_owned()),
        files: None,
        idle_limit: Duration::from_secs(1800),
    }
}

struct Front {
    world: World,
    provider: TestProvider,
    key: Key,
}

impl Front {
    async fn open() -> Self {
        Self::open_with(|_, _| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut ConsoleConfig, &mut IdentityProvider)) -> Self {
        let key = Key::new("k1");
        let provider = TestProvider::start(&[&key]).await;
        let (mut console, mut first) = (configured(), provider.configured());
        change(&mut console, &mut first);
        // Another one, at the same place: it has a way back of its own.
        let mut second = provider.configured();
        second.provider.name = "other".parse().expect("valid");
        let trusted =
            Trusted { providers: vec![first, second], console: Some(console), ..Trusted::default() };
        Self { world: World::trusting(trusted).await, provider, key }
    }

    fn browser(&self) -> Browser {
        Browser::new(&self.world)
    }

    fn browser_with(&self, cookies: BTreeMap<String, String>) -> Browser {
        let mut browser = self.browser();
        browser.cookies = cookies;
        browser
    }

    /// What a browser comes back with, after somebody has signed in at `address`. A null takes a claim out.
    fn answer(&self, address: &Url, change: Value) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let mut claims = json!({
            "iss": self.provider.issuer, "aud": "console", "sub": "00u1", "nonce": parameter(address, "nonce"),
            "iat": now, "exp": now + 300, "email": "alice@example.com", "groups": ["approvers"],
            "jti": uuid::Uuid::now_v7().to_string(),
        });
        let all = claims.as_object_mut().expect("an object");
        all.extend(change.as_object().expect("an object").clone());
        all.retain(|_, value| !value.is_null());
        let code = self.provider.code(&parameter(address, "code_challenge"), self.key.sign(&claims));
        self.back(&[("code", &code), ("state", &parameter(address, "state")), ("iss", &self.provider.issuer)])
    }

    fn back(&self, pairs: &[(&str, &str)]) -> String {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        format!("{CALLBACK}?{query}")
    }

    /// Signs somebody in; gives the last answer.
    async fn sign_in(&self, browser: &mut Browser, change: Value) -> Answer {
        let begun = browser.get("/sign-in/corp").await;
        browser.get(&self.answer(&begun.address(), change)).await
    }

    async fn signed_in(&self) -> Browser {
        let mut browser = self.browser();
        let answer = self.sign_in(&mut browser, json!({})).await;
        assert_eq!(
            (answer.status, answer.location().as_str()),
            (StatusCode::SEE_OTHER, "/"),
            "{}",
            answer.text
        );
        browser
    }

    async fn sql(&self, statement: &str) {
        let done = self.world.database.raw().await.execute(statement).await;
        assert!(done.expect(statement) > 0, "{statement}");
    }

    async fn refusals(&mut self) -> Vec<(String, String)> {
        let is_refusal = |event: &AuditEvent| event.kind == EventKind::SignInRefused;
        let record = self.world.record().await;
        record.into_iter().filter(is_refusal).map(|event| (event.reason, event.comment)).collect()
    }
}

#[track_caller]
fn is_page(answer: &Answer, status: StatusCode, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert!(answer.text.contains(words), "{words}: {}", answer.text);
    assert!(answer.text.starts_with("<!DOCTYPE html>"), "{}", answer.text);
}

#[tokio::test]
async fn a_session_from_its_beginning_to_its_end() {
    let mut front = Front::open().await;
    let mut browser = front.browser();
    // 1. A stranger sees the providers, and is sent to one.
    let welcome = browser.get("/").await;
    is_page(&welcome, StatusCode::OK, "Sign in with corp");
    assert!(welcome.text.contains("Sign in with other") && !welcome.text.contains("Sign out"));
    is_page(&browser.get("/sign-in").await, StatusCode::OK, "Sign in with other");
    let begun = browser.get("/sign-in/corp?return_to=%2F%3Fa%3Db").await;
    let address = begun.address();
    assert_eq!(begun.status, StatusCode::SEE_OTHER);
    assert!(address.as_str().starts_with(&format!("{}/auth?", front.provider.issuer)));
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "console"),
        ("redirect_uri", "https://console.test/sign-in/corp/callback"),
        ("scope", "openid"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(parameter(&address, name), value);
    }
    assert!(browser.cookies.contains_key(ATTEMPT) && !browser.cookies.contains_key(SESSION));
    // 2. The provider sends her back: she has a session, and is where she wanted to be.
    let done = browser.get(&front.answer(&address, json!({ "groups": ["approvers", "staff"] }))).await;
    assert_eq!((done.status, done.location().as_str()), (StatusCode::SEE_OTHER, "/?a=b"), "{}", done.text);
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), [SESSION], "what was remembered is gone");
    let home = browser.get("/?a=b").await;
    is_page(&home, StatusCode::OK, "user:alice@example.com");
    for words in ["approver", "corp", "You hold no grant now", "Sign out", "approvers"] {
        assert!(home.text.contains(words), "{words}: {}", home.text);
    }
    assert!(!home.text.contains("staff"), "a group without a role");
    let event = front.world.last(EventKind::SubjectSignedIn).await;
    assert_eq!((event.actor.as_str(), event.credential.as_str()), ("user:alice@example.com", "session"));
    assert!(event.comment.ends_with("role approver, at the console"), "{}", event.comment);
    // 3. It outlives a restart, and ends when she signs out; she is led to the provider, to sign out there.
    front.world.restart().await;
    let mut browser = front.browser_with(browser.cookies);
    is_page(&browser.get("/").await, StatusCode::OK, "user:alice@example.com");
    let kept = browser.cookies.clone();
    let out = browser.post("/sign-out").await;
    assert_eq!((out.status, out.location().as_str()), (StatusCode::SEE_OTHER, "/signed-out?from=corp"));
    assert!(browser.cookies.is_empty());
    let bye = browser.get("/signed-out?from=corp").await;
    is_page(&bye, StatusCode::OK, "You are signed out here");
    let refresh = bye.headers["refresh"].to_str().expect("ASCII");
    let end = format!(
        "1; url={}/end?client_id=console&post_logout_redirect_uri=https%3A%2F%2Fconsole.test%2Fsigned-out",
        front.provider.issuer
    );
    assert_eq!(refresh, end);
    assert_eq!(front.world.last(EventKind::SubjectSignedOut).await.actor, "user:alice@example.com");
    // 4. Who kept the cookie has nothing.
    browser.cookies = kept;
    is_page(&browser.get("/").await, StatusCode::OK, "Sign in with corp");
    for from in ["/signed-out", "/signed-out?from=nobody", "/signed-out?from=%3Cscript%3E"] {
        let page = browser.get(from).await;
        is_page(&page, StatusCode::OK, "You are signed out here");
        assert!(!page.headers.contains_key("refresh") && !page.text.contains("script"));
    }
}

#[tokio::test]
async fn what_is_shown_is_ones_own() {
    let mut front = Front::open().await;
    let mut story = front.world.story().await;
    let mut browser = front.browser();
    front.world.subject("user:bob@example.com", SubjectRole::Member).await;
    let bob = json!({ "sub": "00u9", "email": "bob@example.com", "groups": null });
    front.sign_in(&mut browser, bob).await;
    let others = story.alice.request(60).await.expect("made").id;
    let hidden = browser.get(&format!("/requests/{others}")).await;
    is_page(&hidden, StatusCode::NOT_FOUND, "is not known");
    assert!(!browser.get("/").await.text.contains(&others.to_string()));
    // An approver sees everybody's, one by one; her start page has her own.
    let mut anne = front.browser();
    front.sign_in(&mut anne, json!({})).await;
    let shown = anne.get(&format!("/requests/{others}")).await;
    is_page(&shown, StatusCode::OK, "user:alice");
    assert!(!anne.get("/").await.text.contains(&others.to_string()));
    // Her own request, and what it leads to.
    let own = CreateRequestRequest {
        resource: "db".to_owned(),
        subject: "user:alice@example.com".to_owned(),
        duration: Some(proto::types::duration_to_wire(Duration::from_secs(60))),
        reason: "<b>a look</b>".to_owned(),
        ..CreateRequestRequest::default()
    };
    let own = front.world.admin.create(own).await.expect("made").id;
    let home = anne.get("/").await;
    is_page(&home, StatusCode::OK, &format!("/requests/{own}"));
    assert!(home.text.contains("&lt;b&gt;a look&lt;/b&gt;"), "{}", home.text);
    story.dora.approve(own).await.expect("approved");
    let home = anne.get("/").await;
    is_page(&home, StatusCode::OK, "activating");
    is_page(&anne.get(&format!("/requests/{own}")).await, StatusCode::OK, "<h2>Grant</h2>");
    for bad in ["x", "%00", "%ff", "01940000-0000-7000-8000-000000000001"] {
        assert_eq!(anne.get(&format!("/requests/{bad}")).await.status, StatusCode::NOT_FOUND, "{bad}");
    }
}

#[tokio::test]
async fn a_stranger_is_led_to_sign_in_and_back() {
    let mut front = Front::open().await;
    let mut browser = front.browser();
    let path = "/requests/01940000-0000-7000-8000-000000000001";
    let turned = browser.get(path).await;
    assert_eq!(turned.status, StatusCode::SEE_OTHER);
    let choice = browser.get(&turned.location()).await;
    let way = format!("/sign-in/corp?return_to={}", path.replace('/', "%2F"));
    is_page(&choice, StatusCode::OK, &way);
    let begun = browser.get(&way).await;
    assert_eq!(browser.get(&front.answer(&begun.address(), json!({}))).await.location(), path);
    let event = front.world.last(EventKind::CallRefused).await;
    assert_eq!((event.reason.as_str(), event.comment.as_str()), ("unauthenticated", "GET /requests/{id}"));
    // Nobody is led elsewhere.
    for elsewhere in ["https://evil.example", "//evil.example", "/\\evil.example", "/%0d%0aSet-Cookie:x"] {
        let query = url::form_urlencoded::byte_serialize(elsewhere.as_bytes()).collect::<String>();
        let begun = browser.get(&format!("/sign-in/corp?return_to={query}")).await;
        let led = browser.get(&front.answer(&begun.address(), json!({}))).await.location();
        assert!(led == "/" || led == elsewhere && led.starts_with("/%0d"), "{elsewhere}: {led}");
    }
}

#[tokio::test]
async fn only_the_answer_that_this_browser_waits_for_counts() {
    let mut front = Front::open().await;
    let mut browser = front.browser();
    let begun = browser.get("/sign-in/corp").await.address();
    let begun_with = browser.cookies.clone();
    let good = front.answer(&begun, json!({}));
    let (code, state) = (good.clone(), parameter(&begun, "state"));
    let code = parameter(&Url::parse(ORIGIN).expect("valid").join(&code).expect("a path"), "code");
    let issuer = front.provider.issuer.clone();
    let with = |pairs: &[(&str, &str)]| front.back(pairs);

    // 1. An attacker's answer, in this browser (login CSRF); this one's answer, in an attacker's browser.
    let mut attacker = front.browser();
    let theirs = attacker.get("/sign-in/corp").await.address();
    let planted = front.answer(&theirs, json!({ "sub": "00u6", "email": "eve@example.com" }));
    let foreign = [
        planted,
        with(&[("code", &code), ("state", "guessed"), ("iss", &issuer)]),
        with(&[("code", &code), ("iss", &issuer)]),
        with(&[("code", &code), ("state", ""), ("iss", &issuer)]),
        with(&[("code", &code), ("state", &state), ("state", &state), ("iss", &issuer)]),
        CALLBACK.to_owned(),
        good.replace("/corp/", "/other/"),
    ];
    for back in foreign {
        let answer = browser.get(&back).await;
        is_page(&answer, StatusCode::BAD_REQUEST, "was not begun in this browser");
        assert_eq!(browser.cookies, begun_with, "what was begun goes on: {back}");
    }
    let stolen = attacker.get(&good).await;
    is_page(&stolen, StatusCode::BAD_REQUEST, "was not begun in this browser");
    let mut empty = front.browser();
    is_page(&empty.get(&good).await, StatusCode::BAD_REQUEST, "was not begun in this browser");
    for garbage in ["x", "a.b.c", "%00", "....", &"a".repeat(4000)] {
        empty.cookies.insert(ATTEMPT.to_owned(), garbage.to_owned());
        is_page(&empty.get(&good).await, StatusCode::BAD_REQUEST, "was not begun in this browser");
    }
    // 2. A code that was stolen from this browser, in an attacker's own sign-in: the verifier is another one.
    let mut attacker = front.browser();
    let theirs = attacker.get("/sign-in/corp").await.address();
    let injected = with(&[("code", &code), ("state", &parameter(&theirs, "state")), ("iss", &issuer)]);
    let answer = attacker.get(&injected).await;
    is_page(&answer, StatusCode::FORBIDDEN, "does not take the code: it said `invalid_grant`");
    // 3. The answer of another provider than the one that was asked (mix-up).
    let begun = browser.get("/sign-in/corp").await.address();
    let state = parameter(&begun, "state");
    let begun_with = browser.cookies.clone();
    for pairs in [
        &[("code", "x"), ("state", &state), ("iss", "https://evil.example")][..],
        &[("code", "x"), ("state", &state)][..],
        &[("error", "access_denied"), ("state", &state), ("iss", "https://evil.example")][..],
    ] {
        browser.cookies = begun_with.clone();
        is_page(&browser.get(&with(pairs)).await, StatusCode::BAD_REQUEST, "not from the identity provider");
    }
    // 4. The provider says no, with what it likes.
    browser.cookies = begun_with.clone();
    let said = "<script>alert(1)</script>\r\n";
    let pairs =
        [("error", "access_denied"), ("error_description", said), ("state", &state), ("iss", &issuer)];
    let answer = browser.get(&with(&pairs)).await;
    is_page(&answer, StatusCode::FORBIDDEN, "`access_denied: &lt;script&gt;alert(1)");
    assert!(!answer.text.contains("<script"), "{}", answer.text);
    // 5. No code, or what is none.
    for code in ["", &"c".repeat(5000)] {
        browser.cookies = begun_with.clone();
        let answer = browser.get(&with(&[("code", code), ("state", &state), ("iss", &issuer)])).await;
        is_page(&answer, StatusCode::FORBIDDEN, "no code that could be used");
    }
    browser.cookies = begun_with;
    // 6. And the right one.
    let answer = browser.get(&front.answer(&begun, json!({}))).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);

    let refusals = front.refusals().await;
    for reason in ["other_browser", "code_refused", "wrong_issuer", "provider_refused", "malformed"] {
        assert!(refusals.iter().any(|(found, _)| found == reason), "{reason}: {refusals:?}");
    }
    let (_, comment) = &refusals[0];
    assert!(
        comment.starts_with("GET /sign-in/{provider}/callback: provider `corp`: this sign-in"),
        "{comment}"
    );
}

#[tokio::test]
async fn an_answer_counts_once_and_not_for_long() {
    let front = Front::open().await;
    let mut browser = front.browser();
    let begun = browser.get("/sign-in/corp").await.address();
    let begun_with = browser.cookies.clone();
    let good = front.answer(&begun, json!({}));
    browser.get(&good).await;
    // With all that the browser had, the same answer again: the cookie is gone, and if not, so is the code.
    is_page(&browser.get(&good).await, StatusCode::BAD_REQUEST, "was not begun in this browser");
    browser.cookies = begun_with.clone();
    is_page(&browser.get(&good).await, StatusCode::FORBIDDEN, "does not take the code");
    // Eleven minutes later.
    let kept = &begun_with[ATTEMPT];
    let parts: Vec<&str> = kept.split('.').collect();
    let began: u64 = parts[1].parse().expect("a number");
    let older = format!("{}.{}.{}", parts[0], began - 11 * 60 * 1000, parts[2]);
    browser.cookies.insert(ATTEMPT.to_owned(), older);
    is_page(&browser.get(&good).await, StatusCode::BAD_REQUEST, "took longer than 10m");
}

#[tokio::test]
async fn what_the_token_says_is_checked_as_for_tools() {
    let mut front = Front::open().await;
    let cases = [
        ("wrong_audience", "for `portcullis`", json!({ "aud": "portcullis" })),
        ("wrong_nonce", "its nonce is another one", json!({ "nonce": "m" })),
        ("wrong_nonce", "its nonce is another one", json!({ "nonce": null })),
        ("not_let_in", "is not let in", json!({ "groups": ["staff"] })),
        ("unusable_subject", "names nobody", json!({ "email": "<script>alert(1)</script>" })),
        ("unverified_email", "has not verified", json!({ "email_verified": false })),
    ];
    for (reason, words, change) in cases {
        let mut browser = front.browser();
        let answer = front.sign_in(&mut browser, change).await;
        is_page(&answer, StatusCode::FORBIDDEN, words);
        assert!(answer.text.contains("Sign in again") && !answer.text.contains("portcullis login"));
        assert!(!answer.text.contains("<script"), "{}", answer.text);
        assert!(browser.cookies.is_empty(), "{reason}");
        assert!(front.refusals().await.iter().any(|(found, _)| found == reason), "{reason}");
    }
}

#[tokio::test]
async fn sessions_of_browsers_and_of_tools_are_not_each_others() {
    let front = Front::open().await;
    let browser = front.signed_in().await;
    let cookie = browser.cookies[SESSION].clone();
    assert!(cookie.starts_with("pcb_"));
    let mut tool = front.world.caller(&cookie).await;
    refused(tool.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
    // A tool's, and the token that breaks the glass, are no cookies.
    let mut other = front.browser();
    other.cookies.insert(SESSION.to_owned(), front.world.admin.token.clone());
    is_page(&other.get("/").await, StatusCode::OK, "Sign in with corp");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = front.key.sign(&json!({
        "iss": front.provider.issuer, "aud": "portcullis", "sub": "00u1", "nonce": "n",
        "iat": now, "exp": now + 300, "email": "alice@example.com", "groups": ["approvers"],
    }));
    let sign_in = wire::SignInRequest {
        provider: "corp".to_owned(),
        id_token: token,
        nonce: "n".to_owned(),
        ..wire::SignInRequest::default()
    };
    let mut nobody = front.world.caller("").await;
    let session = nobody.identity.sign_in(sign_in).await.expect("signed in").into_inner().token;
    front.world.caller(&session).await.who_am_i().await.expect("known");
    other.cookies.insert(SESSION.to_owned(), session);
    is_page(&other.get("/").await, StatusCode::OK, "Sign in with corp");
    for garbage in ["", "x", "pcb_", "\"quoted\"", &"a".repeat(3000)] {
        other.cookies.insert(SESSION.to_owned(), garbage.to_owned());
        is_page(&other.get("/").await, StatusCode::OK, "Sign in with corp");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_time_with_silence_and_with_its_subject() {
    let front = Front::open().await;
    let ended = "Sign in with corp";
    let mut browser = front.signed_in().await;
    // The whole session is in the past.
    front.sql("UPDATE sign_ins SET began_ms = began_ms - 700000, expires_ms = expires_ms - 700000").await;
    is_page(&browser.get("/").await, StatusCode::OK, ended);
    // Not used for half an hour: a minute less, and it goes on, and on.
    let mut browser = front.signed_in().await;
    for _ in 0..2 {
        front.sql("UPDATE sign_ins SET used_ms = used_ms - 1740000").await;
        is_page(&browser.get("/").await, StatusCode::OK, "user:alice@example.com");
    }
    front.sql("UPDATE sign_ins SET used_ms = used_ms - 1800000").await;
    is_page(&browser.get("/").await, StatusCode::OK, ended);
    assert_eq!(browser.post("/sign-out").await.location(), "/");
    // Whoever is taken out of the directory is out.
    let mut browser = front.signed_in().await;
    is_page(&browser.get("/").await, StatusCode::OK, "user:alice@example.com");
    front.sql("DELETE FROM sign_ins WHERE subject = (SELECT number FROM subjects WHERE id = 'user:alice@example.com')").await;
    is_page(&browser.get("/").await, StatusCode::OK, ended);
}

#[tokio::test]
async fn a_new_sign_in_has_a_new_secret_and_ends_what_the_browser_had() {
    let mut front = Front::open().await;
    // Fixation: what an attacker has put there is nothing, and is not what she gets.
    let mut browser = front.browser();
    browser.cookies.insert(SESSION.to_owned(), format!("pcb_{}", "0".repeat(64)));
    let planted = browser.cookies[SESSION].clone();
    front.sign_in(&mut browser, json!({})).await;
    let first = browser.cookies[SESSION].clone();
    assert_ne!(first, planted);
    // Again: another secret, and the first one is over.
    front.sign_in(&mut browser, json!({})).await;
    let mut before = front.browser();
    before.cookies.insert(SESSION.to_owned(), first);
    is_page(&before.get("/").await, StatusCode::OK, "Sign in with corp");
    assert_eq!(front.world.last(EventKind::SubjectSignedIn).await.reason, "signed_in");
    // Somebody else, in the same browser.
    let alices = browser.cookies[SESSION].clone();
    front.sign_in(&mut browser, json!({ "sub": "00u2", "email": "dora@example.com" })).await;
    is_page(&browser.get("/").await, StatusCode::OK, "user:dora@example.com");
    before.cookies.insert(SESSION.to_owned(), alices);
    is_page(&before.get("/").await, StatusCode::OK, "Sign in with corp");
    let event = front.world.last(EventKind::SubjectSignedOut).await;
    assert_eq!(event.subject, "user:alice@example.com");
    assert!(event.comment.contains("somebody else signed in"), "{}", event.comment);
}

#[tokio::test]
async fn no_page_of_others_signs_anybody_out() {
    let mut front = Front::open().await;
    let mut browser = front.signed_in().await;
    let own = ("origin", ORIGIN);
    for headers in [
        &[][..],
        &[("origin", "null")][..],
        &[("origin", "https://evil.example")][..],
        &[("origin", "http://console.test")][..],
        &[("origin", "https://console.test.evil.example")][..],
        &[own, ("sec-fetch-site", "cross-site")][..],
        &[own, ("sec-fetch-site", "same-site")][..],
        &[("sec-fetch-site", "same-origin")][..],
        &[("referer", "https://console.test/")][..],
    ] {
        let answer = browser.send("POST", "/sign-out", headers).await;
        is_page(&answer, StatusCode::FORBIDDEN, "403 Forbidden");
        is_page(&browser.get("/").await, StatusCode::OK, "user:alice@example.com");
    }
    let event = front.world.last(EventKind::CallRefused).await;
    assert_eq!(event.reason, "foreign_page");
    assert!(event.comment.starts_with("POST /sign-out: "), "{}", event.comment);
    // What a page of others would have inside itself is not given, a link is followed.
    let embedded =
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    assert_eq!(browser.send("GET", "/sign-in/corp", &embedded).await.status, StatusCode::FORBIDDEN);
    let link =
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert_eq!(browser.send("GET", "/", &link).await.status, StatusCode::OK);
    assert_eq!(browser.send("GET", "/sign-out", &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(browser.post("/sign-out").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn every_answer_has_its_headers() {
    let front = Front::open().await;
    let mut browser = front.browser();
    let kept = browser.get("/").await;
    for (verb, path) in
        [("GET", "/"), ("GET", "/none"), ("POST", "/sign-out"), ("GET", "/sign-in/corp"), ("PUT", "/")]
    {
        let answer = browser.send(verb, path, &[]).await;
        for (name, value) in [
            ("strict-transport-security", "max-age=31536000"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(answer.headers[name], value, "{verb} {path}");
        }
        let policy = answer.headers["content-security-policy"].to_str().expect("ASCII");
        for part in ["default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(!answer.headers.contains_key("server"));
    }
    // The head of a page is that of the page; what is not there, or not so, is said.
    let head = browser.send("HEAD", "/", &[]).await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(head.headers["content-length"], kept.text.len().to_string());
    for (verb, path, allowed) in [
        ("OPTIONS", "/", "GET,HEAD"),
        ("PUT", "/", "GET,HEAD"),
        ("DELETE", "/sign-out", "POST"),
        ("BREW", "/", "GET,HEAD"),
    ] {
        let answer = browser.send(verb, path, &[]).await;
        is_page(&answer, StatusCode::METHOD_NOT_ALLOWED, "405");
        assert_eq!(answer.headers["allow"], allowed, "{verb} {path}");
    }
    for path in ["/none", "/sign-in/none", "/sign-in/%ff", "/requests/", "/sign-in/corp/", "/../etc/passwd"] {
        is_page(&browser.get(path).await, StatusCode::NOT_FOUND, "404 Not Found");
    }
}

#[tokio::test]
async fn too_many_are_told_to_wait() {
    let mut front = Front::open().await;
    let mut browser = front.browser();
    let mut told = None;
    for _ in 0..400 {
        let answer = browser.get("/").await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            told = Some(answer);
            break;
        }
    }
    let told = told.expect("somebody is told to wait");
    is_page(&told, StatusCode::TOO_MANY_REQUESTS, "429 Too Many Requests");
    assert_eq!(told.headers["retry-after"], "1");
    assert_eq!(front.world.last(EventKind::CallRefused).await.reason, "too_many_calls");
}

async fn raw(front: &Front) -> TlsStream<TcpStream> {
    raw_by(front, "http/1.1").await
}

/// A connection on which this protocol was agreed on, and nothing said yet.
async fn raw_by(front: &Front, protocol: &str) -> TlsStream<TcpStream> {
    let mut config = tls(&front.world.authority, None);
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(front.world.console()).await.expect("connected");
    let name = "console.test".try_into().expect("a name");
    TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.expect("TLS")
}

/// What comes until the other side closes, and how long that took.
async fn to_the_end(stream: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    // Closing without a farewell is closing, too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it is closed");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn garbage_and_floods_of_bytes_are_refused() {
    let front = Front::open().await;
    for (bytes, status) in [
        ("GARBAGE\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\nhost: console.test\r\nx: \0\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\nhost: console.test\r\nconnection: close\r\n\r\n".to_owned(), "HTTP/1.1 200"),
        ("GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n".to_owned(), "HTTP/1.1 421"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), "HTTP/1.1 421"),
        (
            format!("GET / HTTP/1.1\r\nhost: console.test\r\nx: {}\r\n\r\n", "a".repeat(20_000)),
            "HTTP/1.1 431",
        ),
        (format!("GET /{} HTTP/1.1\r\nhost: console.test\r\n\r\n", "a".repeat(20_000)), "HTTP/1.1 4"),
    ] {
        let mut stream = raw(&front).await;
        stream.write_all(bytes.as_bytes()).await.expect("sent");
        let answer = to_the_end(&mut stream).await;
        assert!(answer.starts_with(status), "{status}: {}", &answer[..answer.len().min(80)]);
    }
    // The same over HTTP/2.
    let large = "a".repeat(20_000);
    let answer = front.browser().send("GET", "/", &[("x", large.as_str())]).await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // A form that is larger than any of ours, told or not.
    let browser = front.signed_in().await;
    let head = format!(
        "POST /sign-out HTTP/1.1\r\nhost: console.test\r\norigin: {ORIGIN}\r\ncookie: {SESSION}={}\r\nconnection: close\r\n",
        browser.cookies[SESSION]
    );
    let chunk = format!("4e20\r\n{}\r\n0\r\n\r\n", "a".repeat(20_000));
    for rest in ["content-length: 1000000000\r\n\r\n", &format!("transfer-encoding: chunked\r\n\r\n{chunk}")]
    {
        let mut stream = raw(&front).await;
        stream.write_all(format!("{head}{rest}").as_bytes()).await.expect("sent");
        let answer = to_the_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{}", &answer[..answer.len().min(80)]);
    }
    is_page(&front.browser_with(browser.cookies).get("/").await, StatusCode::OK, "alice");
}

#[tokio::test]
async fn who_says_nothing_or_says_it_slowly_is_closed() {
    let front = Front::open().await;
    let mut silent = raw(&front).await;
    let mut slow = raw(&front).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: console.test\r\n").await.expect("sent");
    let (mut reading, mut writing) = tokio::io::split(slow);
    let drip = tokio::spawn(async move {
        // Until nobody takes it any more.
        while writing.write_all(b"x: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let mut all = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut all));
    // Over HTTP/2 one that says nothing at all, and one that only says that it is HTTP/2.
    let (mut mute, mut polite) = (raw_by(&front, "h2").await, raw_by(&front, "h2").await);
    polite.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let (mute, polite) = (to_the_end(&mut mute), to_the_end(&mut polite));
    let (_, _, _, ended) = tokio::join!(to_the_end(&mut silent), mute, polite, ended);
    let _ = ended.expect("it is closed");
    drip.abort();
    // Others were served meanwhile, and are.
    is_page(&front.browser().get("/").await, StatusCode::OK, "Portcullis");
}

#[tokio::test]
async fn a_provider_that_is_away_is_told() {
    let mut front = Front::open_with(|_, provider| {
        provider.provider.issuer = "https://localhost:1".to_owned();
        provider.expected.issuer = "https://localhost:1".to_owned();
    })
    .await;
    let mut browser = front.browser();
    for _ in 0..6 {
        let answer = browser.get("/sign-in/corp").await;
        is_page(&answer, StatusCode::SERVICE_UNAVAILABLE, "identity provider");
    }
    assert_eq!(front.refusals().await[0].0, "provider_unreachable");
}
