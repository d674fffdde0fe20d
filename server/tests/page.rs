//! The operator's page of the real program, over HTTP and in a real browser.

#![cfg(target_os = "linux")]

mod support;

use std::path::Path;

use fleetune_core::protocol::JoinCode;
use serde_json::{Value, json};
use support::browser::Browser;
use support::server::Place;

/// Status, headers and body of a request.
fn request(
    url: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> (u16, ureq::http::HeaderMap, String) {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut request = ureq::http::Request::builder().uri(url);
    if let Some(bearer) = bearer {
        request = request.header("Authorization", bearer);
    }
    let answer = match body {
        None => agent.run(request.body(()).unwrap()),
        Some(Value::Null) => agent.run(request.method("POST").body(()).unwrap()),
        Some(body) => {
            let request = request.method("POST").header("Content-Type", "application/json");
            agent.run(request.body(body.to_string()).unwrap())
        }
    };
    let mut answer = answer.unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), answer.headers().clone(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_seen_or_ordered_without_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let running = place.serve(None, None);
    let (base, token) = running.page.split_once("/#").unwrap();
    let (status, headers, shell) = request(base, None, None);
    assert_eq!(status, 200);
    assert!(!shell.contains("notes"), "the frame tells nothing about the server");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"));
    for path in ["page.js", "page.css"] {
        let (status, _, text) = request(&format!("{base}/{path}"), None, None);
        assert_eq!(status, 200);
        assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
    }
    let wrong = "0".repeat(token.len());
    for said in [None, Some(""), Some(wrong.as_str())] {
        for (path, body) in [
            ("view", None),
            ("federations/notes/pause", Some(Value::Null)),
            ("invites", Some(json!({ "uses": 1, "expires": "7d" }))),
            ("devices/00000000000000000000000000000000/revoke", Some(Value::Null)),
        ] {
            let (status, _, text) = request(&format!("{base}/{path}"), said, body);
            assert_eq!(status, 401, "{path}: {text}");
        }
    }
    let (status, _, view) = request(&format!("{base}/view"), Some(token), None);
    assert_eq!(status, 200);
    assert!(view.contains("data-federation=\"notes\""));
    assert_eq!(place.admin(&["status"]).json()[0]["status"], "running");
    // The token is the same after a restart.
    let token = token.to_owned();
    running.stop();
    assert!(place.serve(None, None).page.ends_with(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_make_no_sense_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let running = place.serve(None, None);
    let (base, token) = running.page.split_once("/#").unwrap();
    for (path, body, expected) in [
        ("federations/nobody/pause", Value::Null, (400, "no federation named nobody")),
        (
            "federations/notes/rollback",
            json!({ "round": 7 }),
            (400, "round 7 of notes is not kept"),
        ),
        ("federations/notes/explode", Value::Null, (404, "no such order")),
        ("devices/nobody/revoke", Value::Null, (400, "no device's name")),
        ("invites", json!({ "uses": 0, "expires": "7d" }), (400, "one device at least")),
        ("invites", json!({ "uses": 1, "expires": "soon" }), (422, "is no length of time")),
        ("invites", json!({ "uses": 1, "expires": "x".repeat(20_000) }), (413, "")),
    ] {
        let (status, _, text) = request(&format!("{base}/{path}"), Some(token), Some(body));
        assert_eq!(status, expected.0, "{path}: {text}");
        assert!(text.contains(expected.1), "{path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_watches_and_steers_a_federation_in_a_browser() {
    let Some(browser) = Browser::open() else {
        println!("no chromedriver here: the page was not tried in a browser");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "rounds = 6", "deadline = \"5m\"\n");
    let identities = place.enrol(4).await;
    let running = place.serve(None, None);
    let site = place.site(running.address);
    let mut devices = Vec::new();
    for identity in &identities {
        devices.push(site.connect(identity).await.unwrap());
    }
    // The fourth device does not ask for work.
    let three = async |rounds| {
        let part = |i: usize| place.take_rounds(&devices[i], rounds);
        let (a, b, c) = tokio::join!(part(0), part(1), part(2));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
    };
    three(3).await;

    browser.go_to(&running.page);
    browser.wait_for(".federation p", "Round 4 of 6");
    browser.wait_for(".status", "running");
    let address = browser.run("return location.href", json!([]));
    assert!(!address.as_str().unwrap().contains('#'), "the token leaves the address");
    for label in
        ["loss by round", "what became of the devices of each round", "bytes of the updates"]
    {
        browser.wait_for(&format!("svg[aria-label^='{label}']"), "");
    }
    let foreign = browser.run(
        "return performance.getEntriesByType('resource')
             .map((entry) => entry.name).filter((name) => !name.startsWith(location.origin))",
        json!([]),
    );
    assert_eq!(foreign, json!([]), "nothing is loaded from elsewhere");

    browser.click("button", "Pause");
    browser.wait_for(".status", "paused");
    browser.click("button", "Resume");
    browser.wait_for(".status", "running");
    browser.click("button[data-round='1']", "Go back here");
    browser.accept();
    browser.wait_for(".federation p", "Round 2 of 6");
    assert_eq!(place.admin(&["rounds", "notes"]).json().as_array().unwrap().len(), 2);

    let revoked = devices[3].id.to_string();
    browser.click(&format!("button[data-post='/devices/{revoked}/revoke']"), "Revoke");
    browser.accept();
    browser.wait_for("td", "revoked 2");

    browser.type_into("#uses", "5");
    browser.click("#invite button", "Make a join code");
    browser.wait_for("#code", "ft1-");
    let code = browser.run("return document.getElementById('code').textContent", json!([]));
    let code: JoinCode = code.as_str().unwrap().parse().unwrap();
    site.enrol(code.invite, code.secret).await.unwrap();

    three(2).await;
    browser.wait_for(".federation p", "Round 4 of 6");
    browser.run("window.scrollTo(0, 0)", json!([]));
    // Where somebody wants a picture for the documentation.
    if let Some(path) = std::env::var_os("FLEETUNE_SCREENSHOT") {
        browser.screenshot(Path::new(&path));
    }

    // Whoever has no token sees a form for it and nothing else.
    browser.run("sessionStorage.clear()", json!([]));
    browser.go_to(running.page.split_once('#').unwrap().0);
    browser.wait_for("#login", "Token");
    browser.type_into("#token", "wrong");
    browser.click("#login button", "Show the page");
    browser.wait_for("#said", "The token is not the server's");
    running.stop();
}
