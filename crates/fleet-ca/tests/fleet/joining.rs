//! Members that join and renew; tokens that are not good.

use std::collections::BTreeSet;
use std::time::Duration;

use fleet_ca::{
    CA_FILE, CERTIFICATE_FILE, ClientError, FLEET_FILE, KEY_FILE, Ledger, MemberError, Secret, Settings, join,
    keep_denied, keep_renewed, parse_roles, renew,
};

use crate::support::{
    Fleet, HOUR, assert_refused, connect, der, http, identity, issue, log, mode, now, options, post, say,
};

fn refused(error: &ClientError) -> &str {
    match error {
        ClientError::Refused { code, .. } => code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_newcomer_gets_its_certificate_and_keeps_its_key() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker,pollers", 1).await;
    let dir = fleet.member_dir("w-1");
    let joined = join(&token, options("w-1"), &dir).await.unwrap();
    assert_eq!(joined.identity, identity("w-1", "pollers,worker"));
    let member = dir.load().unwrap();
    assert_eq!((&member.identity, member.not_after), (&joined.identity, joined.not_after));
    assert_eq!(member.ca, *fleet.ca().certificate());
    assert_eq!(member.fleet.join_server, token.address);
    assert_eq!(member.fleet.hosts, ["127.0.0.1".parse().unwrap()], "the address that it came from");
    assert!(!member.due(now()) && member.due(now() + Duration::from_secs(21 * 86_400)));
    let path = |name| dir.path().join(name);
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(mode(&path(KEY_FILE)), 0o600);
    for name in [CA_FILE, CERTIFICATE_FILE, FLEET_FILE] {
        assert_eq!(mode(&path(name)), 0o644, "{name}");
    }
    assert!(!format!("{member:?}").contains("PRIVATE"));
    // Somebody who can read the key is told of, and not served.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path(KEY_FILE), std::fs::Permissions::from_mode(0o604)).unwrap();
    assert!(dir.load().unwrap_err().to_string().contains("chmod 600"));
    fleet.stop().await;
}

#[tokio::test]
async fn a_token_is_used_as_often_as_it_may_be() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 2).await;
    let first = fleet.member_dir("1");
    join(&token, options("w-1"), &first).await.unwrap();
    let error = join(&token, options("w-1"), &first).await.unwrap_err();
    assert!(matches!(error, ClientError::Member(MemberError::Joined(_))), "{error}, and no use was lost");
    join(&token, options("w-2"), &fleet.member_dir("2")).await.unwrap();
    let error = join(&token, options("w-3"), &fleet.member_dir("3")).await.unwrap_err();
    assert_eq!(refused(&error), "TokenUsedUp");
    assert!(matches!(fleet.member_dir("3").load(), Err(MemberError::Missing(_))));
    fleet.stop().await;
}

#[tokio::test]
async fn tokens_that_have_ended_or_are_unknown_are_refused() {
    let fleet = Fleet::start().await;
    let dir = fleet.member_dir("w");
    let mut ended = fleet.token_until("worker", 1, now() - HOUR).await;
    let error = join(&ended, options("w"), &dir).await.unwrap_err();
    assert_eq!(refused(&error), "TokenExpired", "whatever the line says");
    ended.expires = now() - HOUR;
    assert!(matches!(join(&ended, options("w"), &dir).await, Err(ClientError::Expired(_))));
    let mut unknown = fleet.token("worker", 1).await;
    unknown.secret = Secret::new();
    assert_eq!(refused(&join(&unknown, options("w"), &dir).await.unwrap_err()), "TokenUnknown");
    let other = Fleet::start().await;
    let mut foreign = other.token("worker", 1).await;
    foreign.address = unknown.address.clone();
    let error = join(&foreign, options("w"), &dir).await.unwrap_err();
    assert!(matches!(error, ClientError::NotTheFleet { .. }), "{error}");
    other.stop().await;
    fleet.stop().await;
}

#[tokio::test]
async fn roles_are_those_that_were_recorded() {
    let fleet = Fleet::start().await;
    let dir = fleet.member_dir("w");
    let mut token = fleet.token("worker,pollers", 1).await;
    let mut wanted = options("w");
    wanted.roles = Some(parse_roles("frontend").unwrap());
    assert!(matches!(join(&token, wanted.clone(), &dir).await, Err(ClientError::Roles { .. })));
    token.roles = parse_roles("frontend,worker").unwrap();
    let error = join(&token, wanted.clone(), &dir).await.unwrap_err();
    assert_eq!(refused(&error), "RolesNotAllowed");
    assert!(error.to_string().contains("pollers,worker"), "{error}");
    wanted.roles = Some(parse_roles("worker").unwrap());
    let joined = join(&token, wanted, &dir).await.unwrap();
    assert_eq!(joined.identity, identity("w", "worker"), "fewer than it may have");
    fleet.stop().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_member() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 1).await;
    let dir = fleet.member_dir("w");
    join(&token, options("w"), &dir).await.unwrap();
    let before = dir.load().unwrap();
    let key = std::fs::read(dir.path().join(KEY_FILE)).unwrap();
    let joined = renew(&dir).await.unwrap();
    let after = dir.load().unwrap();
    assert_ne!(before.certificate, after.certificate);
    assert_eq!((&after.identity, &after.fleet), (&before.identity, &before.fleet));
    assert_eq!(joined.not_after, after.not_after);
    assert_eq!(std::fs::read(dir.path().join(KEY_FILE)).unwrap(), key);
    assert_eq!(mode(&dir.path().join(CERTIFICATE_FILE)), 0o644);
    // Who is denied keeps what it has until it ends.
    fleet.ledger.deny("w".parse().unwrap()).await.unwrap();
    assert_eq!(refused(&renew(&dir).await.unwrap_err()), "MemberDenied");
    assert_eq!(dir.load().unwrap().certificate, after.certificate);
    let token = fleet.token("worker", 1).await;
    let error = join(&token, options("w"), &fleet.member_dir("again")).await.unwrap_err();
    assert_eq!(refused(&error), "MemberDenied");
    fleet.stop().await;
}

#[tokio::test]
async fn a_member_is_kept_renewed() {
    // Certificates begin five minutes in the past: two thirds of this one's life are over when it is made.
    let fleet = Fleet::with(Settings { member_life: Duration::from_secs(90), ..Settings::default() }).await;
    let dir = fleet.member_dir("w");
    join(&fleet.token("worker", 1).await, options("w"), &dir).await.unwrap();
    let before = dir.load().unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let renewed = tokio::select! {
        never = keep_renewed(dir.clone(), move |member| told.send(member).unwrap()) => match never {},
        renewed = heard.recv() => renewed.unwrap(),
    };
    assert!(renewed.certificate != before.certificate && renewed.identity == before.identity);
    assert_eq!(renewed.certificate, dir.load().unwrap().certificate);
    fleet.stop().await;
}

#[tokio::test]
async fn only_a_good_certificate_renews() {
    let fleet = Fleet::start().await;
    let ca = fleet.ca();
    let (good, key) = issue(&ca, "w", "worker", &[], now(), HOUR);
    let csr = key.csr("frontend").unwrap();
    let body = serde_json::json!({ "csr": csr, "hosts": [] }).to_string();
    let request = http("/v1/renew", &body);
    let asked = |certificate: Option<(String, fleet_ca::MemberKey)>| {
        let request = request.clone();
        async move {
            let own = certificate.as_ref().map(|(pem, key)| (pem.as_str(), key));
            // TLS 1.3: a client hears that it is not wanted with its first read.
            let Ok(mut stream) = connect(fleet.address, own).await else { return String::new() };
            say(&mut stream, request.as_bytes()).await
        }
    };
    let answer = asked(Some((good.clone(), key))).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let renewed = fleet_ca::identity_of(&der(body["certificate"].as_str().unwrap())).unwrap();
    assert_eq!(renewed, identity("w", "worker"), "whatever the request is named");
    assert_refused(&asked(None).await, 403, "NoCertificate");
    let ended = issue(&ca, "w", "worker", &[], now() - 2 * HOUR, HOUR);
    assert_eq!(asked(Some(ended)).await, "", "one that has ended gets no further than TLS");
    let early = issue(&ca, "w", "worker", &[], now() + HOUR, HOUR);
    assert_eq!(asked(Some(early)).await, "");
    let other = Fleet::start().await;
    let foreign = issue(&other.ca(), "w", "worker", &[], now(), HOUR);
    assert_eq!(asked(Some(foreign)).await, "", "and so does another fleet's");
    let (_, stolen) = issue(&ca, "x", "worker", &[], now(), HOUR);
    assert_eq!(asked(Some((good, stolen))).await, "", "and one without its key");
    other.stop().await;
}

#[tokio::test]
async fn what_has_ended_is_not_renewed() {
    let fleet = Fleet::with(Settings { member_life: Duration::from_secs(1), ..Settings::default() }).await;
    let token = fleet.token("worker", 1).await;
    let dir = fleet.member_dir("w");
    let joined = join(&token, options("w"), &dir).await.unwrap();
    while now() < joined.not_after {
        tokio::task::yield_now().await;
    }
    assert!(matches!(renew(&dir).await, Err(ClientError::Ended(_))));
    fleet.stop().await;
}

#[tokio::test]
async fn no_secret_is_logged() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 1).await;
    let dir = fleet.member_dir("w");
    join(&token, options("w"), &dir).await.unwrap();
    let error = join(&token, options("x"), &fleet.member_dir("x")).await.unwrap_err();
    renew(&dir).await.unwrap();
    let secret = serde_json::to_value(&token.secret).unwrap();
    let secret = secret.as_str().unwrap();
    // In the place of the roles, where an error of a parser would show it.
    let body = serde_json::json!({ "secret": token.secret, "csr": "", "id": "w", "hosts": [], "roles": [secret] });
    let answer = crate::support::post(fleet.address, "/v1/join", &body.to_string()).await;
    assert_refused(&answer, 400, "InvalidRequest");
    let said = format!("{}{error}{error:?}{answer}", log().text());
    assert!(said.contains("joined the fleet") && said.contains("TokenUsedUp"), "{said}");
    let key = std::fs::read_to_string(dir.path().join(KEY_FILE)).unwrap();
    for hidden in [secret, &token.to_line(), key.lines().nth(1).unwrap()] {
        assert!(!said.contains(hidden), "{said}");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn members_hear_who_was_denied() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 2).await;
    let (dir, other) = (fleet.member_dir("w"), fleet.member_dir("other"));
    join(&token, options("w"), &dir).await.unwrap();
    join(&token, options("other"), &other).await.unwrap();
    // Nobody else hears of it.
    assert_refused(&post(fleet.address, "/v1/denied", "{}").await, 403, "NoCertificate");

    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let follow = |told: tokio::sync::mpsc::UnboundedSender<_>| {
        keep_denied(dir.clone(), Duration::from_millis(10), move |denied| told.send(denied.clone()).unwrap())
    };
    let following = follow(told);
    let listening = async {
        assert!(heard.recv().await.unwrap().is_empty());
        fleet.ledger.deny("other".parse().unwrap()).await.unwrap();
        heard.recv().await.unwrap()
    };
    let denied = tokio::select! {
        never = following => match never {},
        denied = listening => denied,
    };
    assert_eq!(denied, ["other".parse().unwrap()].into());
    assert_eq!(refused(&fleet_ca::denied(&other).await.unwrap_err()), "MemberDenied");

    // What was known last comes first, before anybody was asked.
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let known = tokio::select! {
        never = follow(told) => match never {},
        known = heard.recv() => known.unwrap(),
    };
    assert_eq!(known, denied);
    fleet.stop().await;
}

#[tokio::test]
async fn whom_a_join_server_has_forgotten_stays_denied() {
    let fleet = Fleet::start().await;
    let log = log();
    let token = fleet.token("worker", 1).await;
    let dir = fleet.member_dir("w");
    join(&token, options("w"), &dir).await.unwrap();
    let file = dir.path().join("denied.json");
    let set = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<_>>();
    // The first `count` lists that it hands over.
    let lists = async |count: usize| {
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let listen = async {
            let mut lists = Vec::new();
            while lists.len() < count {
                lists.push(heard.recv().await.unwrap());
            }
            lists
        };
        tokio::select! {
            never = keep_denied(dir.clone(), Duration::from_millis(10), move |denied| told.send(denied.clone()).unwrap()) => match never {},
            lists = listen => lists,
        }
    };
    fleet.ledger.deny("new".parse().unwrap()).await.unwrap();

    // The ledger was restored: from before `old` was denied.
    std::fs::write(&file, r#"["old"]"#).unwrap();
    assert_eq!(lists(2).await, [set(&["old"]), set(&["old", "new"])]);
    assert_eq!(lists(1).await, [set(&["old", "new"])], "after a restart");
    let said = |what: &str| {
        let text = log.text();
        let mut lines = text.lines().filter(|line| line.contains(dir.path().to_str().unwrap()));
        lines.any(|line| line.contains(what)) || panic!("{what}: {text}")
    };
    assert!(said("the join server does not know of members that it denied"));

    std::fs::write(&file, "[\"ol").unwrap();
    assert_eq!(lists(2).await, [set(&[]), set(&["new"])]);
    assert!(said("nobody is denied here until the join server has told who is"));
    fleet.stop().await;
}
