//! Who may ask: the rules of where to listen, the token, the names that we answer to. Pure.
//!
//! On loopback anybody on this machine may look, and nobody else: a page of another site that makes its own name point to
//! 127.0.0.1 sends that name as `Host`, and is refused. Beyond loopback a token is asked for, and TLS, unless a proxy in
//! front is said to have it.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Headers of every answer. Scripts and styles come from our own addresses alone, and nothing may frame us.
pub(crate) const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Why a place to listen is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Others could read without a token.
    NoToken,
    /// The token would go in the clear.
    NoTls,
}

impl Refused {
    /// What is expected.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoToken => "beyond this machine a token is needed; write token_file or token_env",
            Self::NoTls => {
                "beyond this machine TLS is needed; write certificate and key, or behind_proxy = true when a proxy in front has it"
            }
        }
    }
}

/// Whether one may listen there.
///
/// # Errors
/// What is missing.
pub fn may_listen(address: SocketAddr, has_token: bool, has_tls: bool, is_behind_proxy: bool) -> Result<(), Refused> {
    match (address.ip().is_loopback() && !is_behind_proxy, has_token, has_tls || is_behind_proxy) {
        (true, ..) | (false, true, true) => Ok(()),
        (false, false, _) => Err(Refused::NoToken),
        (false, true, false) => Err(Refused::NoTls),
    }
}

/// What a request shows of who sends it.
pub(crate) struct Asked<'a> {
    pub host: Option<&'a str>,
    pub authorization: Option<&'a str>,
}

/// The rules of a server.
#[derive(Clone)]
pub(crate) struct Rules {
    /// The digest of the token; comparing digests tells nothing of where texts differ.
    token: Option<[u8; 32]>,
}

/// What is to be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Go,
    /// 401: the token is missing or wrong.
    Unknown,
    /// 421: that is not our name.
    NotOurName,
}

impl Rules {
    pub(crate) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(digest) }
    }

    pub(crate) fn judge(&self, asked: &Asked<'_>) -> Answer {
        match &self.token {
            Some(token) => {
                let given = asked.authorization.and_then(given_token);
                if given.is_some_and(|given| digest(&given) == *token) { Answer::Go } else { Answer::Unknown }
            }
            None if asked.host.is_some_and(is_loopback_name) => Answer::Go,
            None => Answer::NotOurName,
        }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The token of `Bearer TOKEN`, or the password of `Basic`, which browsers ask people for.
fn given_token(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    Some(text.split_once(':')?.1.to_owned())
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // The colons of an address of version 6 stand in brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_with_token_and_tls_alone() {
        let may = |address: &str, token, tls, proxy| may_listen(address.parse().unwrap(), token, tls, proxy);
        for address in ["127.0.0.1:80", "127.1.2.3:0", "[::1]:80"] {
            assert_eq!(may(address, false, false, false), Ok(()), "{address}");
            // A proxy carries others to us.
            assert_eq!(may(address, false, false, true), Err(Refused::NoToken));
        }
        for address in ["0.0.0.0:80", "192.168.1.2:80", "[::]:80", "[2001:db8::1]:80"] {
            assert_eq!(may(address, false, true, false), Err(Refused::NoToken), "{address}");
            assert_eq!(may(address, true, false, false), Err(Refused::NoTls));
            assert_eq!(may(address, true, true, false), Ok(()));
            assert_eq!(may(address, true, false, true), Ok(()));
        }
    }

    #[test]
    fn names_that_are_ours() {
        for host in ["localhost", "LOCALHOST:7878", "127.0.0.1:7878", "[::1]:7878", "[::1]", "127.0.0.1"] {
            assert!(is_loopback_name(host), "{host}");
        }
        for host in ["evil.example", "evil.example:7878", "localhost.evil.example", "127.0.0.1.evil.example", "", ":80"]
        {
            assert!(!is_loopback_name(host), "{host}");
        }
    }

    #[test]
    fn tokens_by_bearer_and_basic() {
        let rules = Rules::new(Some("s3cret"));
        let judge = |authorization: Option<&str>| rules.judge(&Asked { host: Some("any"), authorization });
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for header in ["Bearer s3cret", "bearer  s3cret", &basic("ops:s3cret"), &basic(":s3cret")] {
            assert_eq!(judge(Some(header)), Answer::Go, "{header}");
        }
        for header in ["Bearer s3cre", "Bearer", "s3cret", "Digest s3cret", "Basic !!", &basic("s3cret"), &basic("a:b")]
        {
            assert_eq!(judge(Some(header)), Answer::Unknown, "{header}");
        }
        assert_eq!(judge(None), Answer::Unknown);
        let open = Rules::new(None);
        assert_eq!(open.judge(&Asked { host: None, authorization: None }), Answer::NotOurName);
        assert_eq!(open.judge(&Asked { host: Some("localhost:1"), authorization: None }), Answer::Go);
    }
}
