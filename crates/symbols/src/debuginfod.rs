//! Debug files from debuginfod servers, through the cache that all debuginfod clients of a user share.
//!
//! The cache is `DIR/BUILDID/debuginfo`; an empty file there records that no server had it, and holds for ten
//! minutes. Source: `debuginfod_find_debuginfo(3)` and `debuginfod(8)` of elfutils 0.188.
//!
//! Without the `debuginfod` feature only the cache is consulted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::elf::Elf;
use crate::locate::{hex, open_with_id};

/// How long "no server has it" is believed: `cache_miss_s` of elfutils.
const MISS_LIFETIME: Duration = Duration::from_secs(600);

/// Which servers to ask, and where downloads are kept.
#[derive(Clone, Debug)]
pub struct Debuginfod {
    /// Base addresses of the servers, asked in order.
    pub urls: Vec<String>,
    /// The cache folder; created when the first file arrives.
    pub cache_dir: PathBuf,
    /// How long a server may take to connect, and to begin its answer.
    pub timeout: Duration,
}

impl Debuginfod {
    /// What `DEBUGINFOD_URLS`, `DEBUGINFOD_CACHE_PATH` and `DEBUGINFOD_TIMEOUT` say; `None` when no server is named.
    pub fn from_env() -> Option<Debuginfod> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let urls = variable("DEBUGINFOD_URLS")?.to_string_lossy().split_whitespace().map(str::to_owned).collect();
        let cache_dir = variable("DEBUGINFOD_CACHE_PATH").map(PathBuf::from).or_else(|| {
            let home = variable("HOME").map(PathBuf::from);
            let old = home.as_ref().map(|home| home.join(".debuginfod_client_cache")).filter(|dir| dir.is_dir());
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".cache")));
            old.or_else(|| Some(cache?.join("debuginfod_client")))
        })?;
        let seconds = variable("DEBUGINFOD_TIMEOUT").and_then(|value| value.to_str()?.parse().ok());
        Some(Debuginfod { urls, cache_dir, timeout: Duration::from_secs(seconds.unwrap_or(90)) })
    }
}

/// The state of the servers during one run.
pub(crate) struct Client {
    config: Debuginfod,
    #[cfg(feature = "debuginfod")]
    agent: ureq::Agent,
}

impl Client {
    pub(crate) fn new(config: Debuginfod) -> Client {
        Client {
            #[cfg(feature = "debuginfod")]
            agent: download::agent(config.timeout),
            config,
        }
    }

    /// The debug file of a build, from the cache or a server. Blocks while it downloads.
    pub(crate) fn find(&mut self, build_id: &[u8]) -> Option<Elf> {
        let path = self.config.cache_dir.join(hex(build_id)).join("debuginfo");
        if let Some(elf) = open_with_id(&path, build_id) {
            return Some(elf);
        }
        if !recently_missed(&path) && self.fetch(&path, build_id) {
            return open_with_id(&path, build_id);
        }
        None
    }

    #[cfg(not(feature = "debuginfod"))]
    fn fetch(&mut self, _path: &Path, _build_id: &[u8]) -> bool {
        false
    }

    /// Asks the servers in turn; says whether the file now is in the cache.
    #[cfg(feature = "debuginfod")]
    fn fetch(&mut self, path: &Path, build_id: &[u8]) -> bool {
        let mut all_said_no = true;
        let mut index = 0;
        while let Some(base) = self.config.urls.get(index) {
            let url = format!("{}/buildid/{}/debuginfo", base.trim_end_matches('/'), hex(build_id));
            match download::fetch(&self.agent, &url, path) {
                download::Answer::Stored => return true,
                download::Answer::NotFound => index += 1,
                download::Answer::Failed => {
                    all_said_no = false;
                    index += 1;
                }
                download::Answer::Unreachable => {
                    all_said_no = false;
                    // A hundred modules must not wait a hundred times for a dead server.
                    self.config.urls.remove(index);
                }
            }
        }
        if all_said_no && !self.config.urls.is_empty() {
            // An unwritable cache costs a question next time, no more.
            let _ = path.parent().map(fs::create_dir_all);
            let _ = fs::write(path, b"");
        }
        false
    }
}

fn recently_missed(path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    metadata.len() == 0 && age.is_some_and(|age| age < MISS_LIFETIME)
}

#[cfg(feature = "debuginfod")]
mod download {
    use std::fs::{self, File};
    use std::io;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

    pub(super) enum Answer {
        Stored,
        NotFound,
        /// This one request went wrong.
        Failed,
        /// No request to this server can succeed.
        Unreachable,
    }

    pub(super) fn agent(timeout: Duration) -> ureq::Agent {
        let mut tls = TlsConfig::builder();
        // The system's certificates first: company servers are signed by a company's authority.
        if let Some(certificates) = system_certificates() {
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates)));
        }
        ureq::Agent::config_builder()
            .tls_config(tls.build())
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(timeout))
            .user_agent(concat!("leakscope/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent()
    }

    fn system_certificates() -> Option<Vec<Certificate<'static>>> {
        let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
        // Debian and Alpine; Fedora; SUSE.
        let usual =
            ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
        let paths = named.into_iter().chain(usual.map(std::path::PathBuf::from));
        let pem = paths.filter_map(|path| fs::read(path).ok()).next()?;
        let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        (!certificates.is_empty()).then_some(certificates)
    }

    /// Downloads to a temporary file beside the target and renames it, so that other clients never see half a file.
    pub(super) fn fetch(agent: &ureq::Agent, url: &str, path: &Path) -> Answer {
        let mut response = match agent.get(url).call() {
            Ok(response) => response,
            Err(ureq::Error::StatusCode(404 | 410)) => return Answer::NotFound,
            Err(ureq::Error::StatusCode(_)) => return Answer::Failed,
            Err(_) => return Answer::Unreachable,
        };
        let temporary = path.with_extension(format!("{}.part", std::process::id()));
        let stored = (|| -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            // Nothing of that name can be ours: a crashed run with the same process id left it.
            let _ = fs::remove_file(&temporary);
            let mut file = File::create_new(&temporary)?;
            io::copy(&mut response.body_mut().as_reader(), &mut file)?;
            fs::rename(&temporary, path)
        })();
        if stored.is_err() {
            let _ = fs::remove_file(&temporary);
            return Answer::Failed;
        }
        Answer::Stored
    }
}
