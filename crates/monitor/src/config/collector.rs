//! `[collector]`, where an agent pushes to, and the whole configuration of a collector, which has a file of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use leakscope_alerts::Secret;
use leakscope_board::may_listen;
use leakscope_collect::CollectOptions;

use super::channels::{is_web_address, secret};
use super::table::Table;
use super::{Page, Problem, decode_with};
use crate::error::MonitorError;
use crate::units;

/// Where a collector listens when nothing else is said.
pub const COLLECT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7879);
/// Where its page listens when nothing else is said.
pub const COLLECT_PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7880);
/// Where its state lies when nothing else is said.
pub const COLLECT_STATE: &str = "/var/lib/leakscope-collector";
const PUSH_SECONDS: u64 = 30;
const QUEUE: u64 = 64;

/// Where the history is pushed to.
#[derive(Clone, Debug)]
pub struct Collector {
    /// The collector's address.
    pub url: String,
    /// This machine's token.
    pub token: Secret,
    /// Certificates that the collector's is signed by.
    pub ca_file: Option<PathBuf>,
    /// Seconds between two pushes.
    pub interval_seconds: u64,
}

pub(super) fn collector(root: &Table<'_>) -> Option<Collector> {
    let table = root.table("collector")?;
    let url = table.string("url");
    match url {
        None => table.own_problem("`url` is missing, such as \"https://collector.example.org:7879\""),
        Some(url) if !is_web_address(url) => {
            table.problem("url", &format!("`{url}` is no web address; write https://HOST:7879"));
        }
        Some(url) if url.starts_with("http://") && !is_loopback(url) => {
            table.problem("url", "a token does not go in the clear to another machine; write https://HOST:7879");
        }
        Some(_) => {}
    }
    let token = secret(&table, "token", "token_file", "token_env");
    if token.is_none() {
        table.own_problem("token_file or token_env is missing: this machine's token, as the collector knows it");
    }
    let interval_seconds = table.with("interval", units::seconds).unwrap_or(PUSH_SECONDS);
    if !(1..=3600).contains(&interval_seconds) {
        table.problem("interval", "must be between 1s and 1h");
    }
    let ca_file = table.string("ca_file").map(PathBuf::from);
    table.finish();
    Some(Collector { url: url?.to_owned(), token: token?, ca_file, interval_seconds })
}

/// Whether an address is one of this machine alone.
fn is_loopback(url: &str) -> bool {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // What stands before an @ is no host.
    let host = host.rsplit('@').next().unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The configuration of a collector.
#[derive(Clone, Debug)]
pub struct Collecting {
    /// Where and how it takes in what is pushed.
    pub options: CollectOptions,
    /// The page, if there is one.
    pub page: Option<Page>,
}

/// The configuration of a collector.
///
/// # Errors
/// When it cannot be read, or has mistakes: all of them.
pub fn read(path: &Path) -> Result<Collecting, MonitorError> {
    let text = std::fs::read_to_string(path).map_err(|source| MonitorError::File {
        path: path.to_owned(),
        what: "read the collector's configuration (docs/scale.md has one)",
        source,
    })?;
    decode(&text).map_err(|problems| MonitorError::Config { path: path.to_owned(), problems })
}

/// The configuration of a collector, in a text.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn decode(text: &str) -> Result<Collecting, Vec<Problem>> {
    decode_with(text, |root, _| {
        let collecting = Collecting { options: options(root), page: super::outlets::page(root, COLLECT_PAGE) };
        root.finish();
        collecting
    })
}

fn options(root: &Table<'_>) -> CollectOptions {
    let listen = root.with("listen", super::outlets::place_to_listen).unwrap_or(COLLECT);
    let tls = super::outlets::certificate(root);
    let behind_proxy = root.boolean("behind_proxy").unwrap_or(false);
    if let Err(refused) = may_listen(listen, true, tls.is_some() || root.has("certificate"), behind_proxy) {
        root.problem("listen", refused.words());
    }
    let tokens = root.string("tokens");
    if tokens.is_none() && !root.has("tokens") {
        root.own_problem("`tokens` is missing: a folder with a file for each machine, named as it, its token inside");
    }
    CollectOptions {
        listen,
        tokens: tokens.unwrap_or_default().into(),
        tls,
        behind_proxy,
        state: root.string("state").unwrap_or(COLLECT_STATE).into(),
        queue: root.number("queue", 1..=10_000).unwrap_or(QUEUE) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn a_token_never_goes_in_the_clear_to_another_machine() {
        let problem = |url: &str| {
            let text = format!("[collector]\nurl = \"{url}\"\ntoken_file = \"/t\"\n");
            Config::decode(&text).map(|_| ()).map_err(|problems| problems[0].to_string())
        };
        for url in ["https://c.example:7879", "http://127.0.0.1:7879", "http://localhost:1/", "http://[::1]:7879"] {
            assert_eq!(problem(url), Ok(()), "{url}");
        }
        for url in [
            "http://c.example:7879",
            "http://localhost.evil.example",
            "http://127.0.0.1@evil.example/",
            "http://10.0.0.1",
        ] {
            let problem = problem(url).unwrap_err();
            assert!(problem.starts_with("2:7: a token does not go in the clear"), "{url}: {problem}");
        }
        assert!(problem("c.example").unwrap_err().contains("no web address"));
        let problems = Config::decode("[collector]\ntoken = \"x\"\n").unwrap_err();
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|text| text.contains("`url` is missing")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("token_file")), "{texts:?}");
    }

    #[test]
    fn a_collector_in_one_line() {
        let collecting = decode("tokens = \"/etc/leakscope/tokens\"\n").unwrap();
        let options = collecting.options;
        assert!(collecting.page.is_none(), "nobody has asked for it");
        assert_eq!((options.listen, options.queue, options.tls.is_some()), (COLLECT, 64, false));
        let problem = |text: &str| decode(text).unwrap_err()[0].to_string();
        assert!(problem("").contains("`tokens` is missing"));
        assert!(problem("tokens = \"/t\"\nlisten = \"0.0.0.0:7879\"\n").starts_with("2:10: beyond this machine TLS"));
        assert!(decode("tokens = \"/t\"\nlisten = \"0.0.0.0:1\"\ncertificate = \"/c\"\nkey = \"/k\"\n").is_ok());
        assert!(problem("tokens = \"/t\"\ncertificate = \"/c\"\n").contains("needs `key`"));
        assert!(problem("tokens = \"/t\"\nqueue = 0\n").contains("from 1 to"));
        let page = decode("tokens = \"/t\"\n[page]\n").unwrap().page.unwrap();
        assert_eq!((page.listen, page.token.is_none()), (COLLECT_PAGE, true));
        // The rules of a monitor's page.
        let open = "tokens = \"/t\"\n[page]\nlisten = \"0.0.0.0:80\"\n";
        assert!(problem(open).starts_with("3:10: beyond this machine a token"));
        assert!(problem(&format!("{open}token_file = \"/t\"\n")).contains("TLS is needed"));
        assert!(problem("tokens = \"/t\"\n[page]\ntokenn_file = \"x\"\n").contains("`tokenn_file`"));
        assert!(
            problem("tokenz = \"/t\"\n").contains("did you mean `tokens`")
                || problem("tokenz = \"/t\"\n").contains("missing")
        );
    }
}
