//! HTTP: our own JSON (signed), and the words of Slack, Feishu, DingTalk and Alertmanager.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::Refusal;
use crate::{AlertError, Notice, Secret, format};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long Alertmanager takes an alert for open without a word from us: three of our repeats, seconds.
const KEEP_SECONDS: u64 = 3 * 86_400;
/// The most of an answer that is read.
const ANSWER_BYTES: u64 = 64 << 10;

/// Where to; an address with a token in it is a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// May be shown.
    Plain(String),
    /// May not.
    Secret(Secret),
}

/// Whose words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Our own JSON.
    Webhook,
    /// Slack, Mattermost, Rocket.Chat.
    Slack,
    /// Feishu, Lark.
    Feishu,
    /// DingTalk.
    DingTalk,
    /// Prometheus Alertmanager, version 2; the address is that of the server.
    Alertmanager,
}

/// Notices over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// Whose words.
    pub dialect: Dialect,
    /// Where to.
    pub address: Address,
    /// Signs what is sent.
    pub secret: Option<Secret>,
    /// A bearer token.
    pub token: Option<Secret>,
}

impl Web {
    pub(super) fn name(&self) -> String {
        let kind = match self.dialect {
            Dialect::Webhook => "webhook",
            Dialect::Slack => "slack",
            Dialect::Feishu => "feishu",
            Dialect::DingTalk => "dingtalk",
            Dialect::Alertmanager => "alertmanager",
        };
        match &self.address {
            Address::Plain(address) => format!("{kind} {}", without_query(address)),
            Address::Secret(secret) => format!("{kind} at {secret:?}"),
        }
    }

    pub(super) fn send(&self, notice: &Notice) -> Result<(), Refusal> {
        let mut address = match &self.address {
            Address::Plain(address) => address.clone(),
            Address::Secret(secret) => secret.read()?,
        };
        if !address.starts_with("http://") && !address.starts_with("https://") {
            return Err(AlertError::Address {
                found: self.name(),
                expected: "an address that begins with https:// or http://",
            }
            .into());
        }
        let secret = self.secret.as_ref().map(Secret::read).transpose()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let body = match self.dialect {
            Dialect::Webhook => format::machine_readable(notice),
            Dialect::Slack => format::slack(notice),
            Dialect::Feishu => format::feishu(
                notice,
                secret.as_ref().map(|secret| (now.as_secs(), sign_feishu(now.as_secs(), secret))),
            ),
            Dialect::DingTalk => {
                if let Some(secret) = &secret {
                    let joint = if address.contains('?') { '&' } else { '?' };
                    let signature = in_query(&sign_dingtalk(now.as_millis(), secret));
                    address = format!("{address}{joint}timestamp={}&sign={signature}", now.as_millis());
                }
                format::dingtalk(notice)
            }
            Dialect::Alertmanager => {
                address = format!("{}/api/v2/alerts", address.trim_end_matches('/'));
                format::alertmanager(notice, KEEP_SECONDS)
            }
        };
        self.post(&address, &body, secret.as_deref(), now.as_secs())
    }

    fn post(&self, address: &str, body: &Value, secret: Option<&str>, now: u64) -> Result<(), Refusal> {
        let text = body.to_string();
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into();
        let mut request = agent.post(address).header("Content-Type", "application/json");
        if let (Dialect::Webhook, Some(secret)) = (self.dialect, secret) {
            let signature = sign(secret.as_bytes(), format!("{now}.{text}").as_bytes());
            let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
            request = request.header("X-Leakscope-Timestamp", now.to_string());
            request = request.header("X-Leakscope-Signature", format!("sha256={hex}"));
        }
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {}", token.read()?));
        }
        // Errors of the network name the address, and the address may hold a token.
        let hidden = |error: ureq::Error| error.to_string().replace(address, "the address");
        let mut answer = request.send(&text).map_err(|error| Refusal::Temporary(hidden(error)))?;
        let status = answer.status().as_u16();
        let said = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_string().unwrap_or_default();
        let first: String = said.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
        match status {
            200..300 => self.check_answer(&said).map_or(Ok(()), |reason| Err(Refusal::Temporary(reason))),
            408 | 429 | 500.. => Err(Refusal::Temporary(format!("HTTP {status} {first}"))),
            _ => Err(Refusal::Lasting(format!("HTTP {status} {first}"))),
        }
    }

    /// Feishu and DingTalk say 200 and refuse in the body.
    fn check_answer(&self, said: &str) -> Option<String> {
        let key = match self.dialect {
            Dialect::Feishu => "code",
            Dialect::DingTalk => "errcode",
            _ => return None,
        };
        let answer: Value = serde_json::from_str(said).ok()?;
        let code = answer.get(key)?.as_i64()?;
        (code != 0)
            .then(|| format!("code {code}: {}", answer.get("msg").or(answer.get("errmsg")).unwrap_or(&Value::Null)))
    }
}

/// HMAC-SHA256.
pub(crate) fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Time and secret are the key, and the text is empty. Source: Feishu, "Use custom bots in a chat".
fn sign_feishu(seconds: u64, secret: &str) -> String {
    STANDARD.encode(sign(format!("{seconds}\n{secret}").as_bytes(), b""))
}

/// Source: DingTalk, "Custom robot access, security settings".
fn sign_dingtalk(milliseconds: u128, secret: &str) -> String {
    STANDARD.encode(sign(secret.as_bytes(), format!("{milliseconds}\n{secret}").as_bytes()))
}

fn in_query(text: &str) -> String {
    text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

fn without_query(address: &str) -> &str {
    address.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_as_python_makes_them() {
        // python3 -c 'import hmac,hashlib,base64; print(base64.b64encode(hmac.new(K, T, hashlib.sha256).digest()))'
        assert_eq!(sign_feishu(1_599_360_473, "demo"), "l1N0gAcBjdwBvGm1xMjOF0XSyaLRpR7tuO5dHfhAYc8=");
        assert_eq!(sign_dingtalk(1_599_360_473_000, "demo"), "eblRZvilBzXa6Ce18IeBM4pMy1rYNWKicaCg6VMwQe0=");
    }

    #[test]
    fn names_hide_tokens() {
        let web = |address| Web { dialect: Dialect::DingTalk, address, secret: None, token: None };
        let plain = web(Address::Plain("https://x.example/robot?access_token=abc".into()));
        assert_eq!(plain.name(), "dingtalk https://x.example/robot");
        assert_eq!(web(Address::Secret(Secret::Variable("HOOK".into()))).name(), "dingtalk at $HOOK");
    }
}
