//! `[page]` and `[otlp]`: what shows the state of the monitor to others.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use leakscope_alerts::Secret;
use leakscope_board::may_listen;

use super::channels::{is_web_address, secret};
use super::table::Table;
use crate::units;

/// Where the page listens when nothing else is said.
pub const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7878);
const OTLP_SECONDS: u64 = 60;

/// The page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What must be shown to look.
    pub token: Option<Secret>,
    /// A certificate chain and its key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether a proxy in front of it has TLS.
    pub behind_proxy: bool,
}

/// Metrics pushed by OTLP.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// The collector's address for metrics.
    pub url: String,
    /// A bearer token.
    pub token: Option<Secret>,
    /// Seconds between two pushes.
    pub interval_seconds: u64,
}

/// `[page]`, which listens at `usual` when nothing else is said.
pub(super) fn page(root: &Table<'_>, usual: SocketAddr) -> Option<Page> {
    let table = root.table("page")?;
    let listen = table.with("listen", place_to_listen);
    let token = secret(&table, "token", "token_file", "token_env");
    let tls = certificate(&table);
    let behind_proxy = table.boolean("behind_proxy").unwrap_or(false);
    let listen = listen.unwrap_or(usual);
    if let Err(refused) = may_listen(listen, token.is_some(), tls.is_some() || table.has("certificate"), behind_proxy) {
        table.problem("listen", refused.words());
    }
    table.finish();
    Some(Page { listen, token, tls, behind_proxy })
}

/// An address and a port.
pub(super) fn place_to_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is no place to listen; write an address and a port, such as \"127.0.0.1:7878\""))
}

/// A certificate chain and its key: both or none.
pub(super) fn certificate(table: &Table<'_>) -> Option<(PathBuf, PathBuf)> {
    match (table.string("certificate"), table.string("key")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            table.problem("certificate", "`certificate` needs `key`, the file of its key");
            None
        }
        (None, Some(_)) => {
            table.problem("key", "`key` needs `certificate`, the file of its certificate");
            None
        }
    }
}

pub(super) fn otlp(root: &Table<'_>) -> Option<Otlp> {
    let table = root.table("otlp")?;
    let url = table.string("url");
    match url {
        None => table.own_problem("`url` is missing, such as \"http://localhost:4318/v1/metrics\""),
        Some(url) if !is_web_address(url) => {
            table.problem("url", &format!("`{url}` is no web address; write http://HOST:4318/v1/metrics"));
        }
        Some(_) => {}
    }
    let interval_seconds = table.with("interval", units::seconds).unwrap_or(OTLP_SECONDS);
    if !(1..=3600).contains(&interval_seconds) {
        table.problem("interval", "must be between 1s and 1h");
    }
    let token = secret(&table, "token", "token_file", "token_env");
    table.finish();
    Some(Otlp { url: url.unwrap_or_default().to_owned(), token, interval_seconds })
}
