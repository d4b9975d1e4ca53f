//! The channels of the configuration: `[mail]`, `[[webhook]]`, `[[slack]]`, `[[feishu]]`, `[[dingtalk]]`, `[[alertmanager]]`,
//! `[[command]]`. Each may stand several times.

use std::path::PathBuf;

use leakscope_alerts::channel::{Address, Command, Dialect, Mail, Security, Transport, Web};
use leakscope_alerts::{Channel, Secret};

use super::table::Table;

const SENDMAIL: &str = "/usr/sbin/sendmail";

pub(super) fn decode(root: &Table<'_>) -> Vec<Channel> {
    let mut channels: Vec<Channel> = root.tables("mail").iter().map(|table| Channel::Mail(mail(table))).collect();
    for (key, dialect) in [
        ("webhook", Dialect::Webhook),
        ("slack", Dialect::Slack),
        ("feishu", Dialect::Feishu),
        ("dingtalk", Dialect::DingTalk),
        ("alertmanager", Dialect::Alertmanager),
    ] {
        channels.extend(root.tables(key).iter().map(|table| Channel::Web(web(table, dialect))));
    }
    for table in root.tables("command") {
        let words: Vec<String> = table.strings("run").into_iter().map(|(word, _)| word.to_owned()).collect();
        if words.is_empty() {
            table.own_problem("`run` is missing: the program and its arguments, as a list of texts");
        }
        table.finish();
        channels.push(Channel::Command(Command { words }));
    }
    channels
}

fn mail(table: &Table<'_>) -> Mail {
    let to: Vec<String> = address_list(table, "to");
    if to.is_empty() && !table.has("to") {
        table.own_problem("`to` is missing: a list of addresses");
    }
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let from = match table.string("from") {
        Some(text) => {
            check_address(table, text, "from");
            text.to_owned()
        }
        None => format!("leakscope <{user}@{}>", if node.is_empty() { "localhost" } else { &node }),
    };
    let login = match (table.string("user"), secret(table, "password", "password_file", "password_env")) {
        (Some(user), Some(password)) => Some((user.to_owned(), password)),
        (Some(_), None) => {
            table.problem("user", "`user` needs password_file or password_env");
            None
        }
        (None, _) => None,
    };
    let security = table.with("tls", |text| match text {
        "starttls" => Ok(Security::StartTls),
        "tls" => Ok(Security::Tls),
        "none" => Ok(Security::None),
        _ => Err(format!("`{text}`: expected starttls, tls or none")),
    });
    let port = table.number("port", 1..=65_535);
    let ca_file = table.string("ca_file").map(PathBuf::from);
    let sendmail = table.string("sendmail").map(PathBuf::from);
    let transport = match (table.string("host"), sendmail) {
        (Some(_), Some(_)) => {
            table.problem("sendmail", "`host` and `sendmail` are two ways; name one");
            Transport::Sendmail(SENDMAIL.into())
        }
        (Some(host), None) => {
            let security = security.unwrap_or(Security::StartTls);
            let usual = if security == Security::Tls { 465 } else { 587 };
            let port = port.map_or(usual, |port| port as u16);
            if login.is_some() && security == Security::None && !matches!(host, "localhost" | "127.0.0.1" | "::1") {
                table.problem("tls", "a password does not go in the clear to another machine; use starttls or tls");
            }
            Transport::Smtp { host: host.to_owned(), port, security, ca_file, login }
        }
        (None, path) => Transport::Sendmail(path.unwrap_or_else(|| SENDMAIL.into())),
    };
    table.finish();
    Mail { from, to, transport }
}

fn address_list(table: &Table<'_>, key: &'static str) -> Vec<String> {
    let mut addresses = Vec::new();
    for (text, span) in table.strings(key) {
        if Mail::is_address(text) {
            addresses.push(text.to_owned());
        } else {
            table.problem_at(span, format!("`{text}` is no address; write such as \"ops@example.org\""));
        }
    }
    addresses
}

fn check_address(table: &Table<'_>, text: &str, key: &'static str) {
    if !Mail::is_address(text) {
        table.problem(key, &format!("`{text}` is no address; write such as \"ops@example.org\""));
    }
}

fn web(table: &Table<'_>, dialect: Dialect) -> Web {
    let url = table.string("url");
    if let Some(url) = url.filter(|url| !is_web_address(url)) {
        table.problem("url", &format!("`{url}` is no web address; write https://HOST/PATH"));
    }
    let address = match (url, secret(table, "", "url_file", "url_env")) {
        (Some(url), None) => Address::Plain(url.to_owned()),
        (None, Some(secret)) => Address::Secret(secret),
        (url, _) => {
            table.own_problem("one of url, url_file and url_env is expected");
            Address::Plain(url.unwrap_or_default().to_owned())
        }
    };
    let web = Web {
        dialect,
        address,
        secret: secret(table, "secret", "secret_file", "secret_env"),
        token: secret(table, "token", "token_file", "token_env"),
    };
    table.finish();
    web
}

pub(super) fn is_web_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !url.contains(char::is_whitespace))
}

/// A secret by file or variable; one that is written into the file itself is a mistake, and is not repeated.
pub(super) fn secret(
    table: &Table<'_>,
    plain: &'static str,
    file: &'static str,
    variable: &'static str,
) -> Option<Secret> {
    if !plain.is_empty() && table.has_used(plain) {
        table.problem(plain, &format!("secrets do not stand in this file; use {file} or {variable}"));
    }
    match (table.string(file), table.string(variable)) {
        (Some(path), None) => Some(Secret::File(path.into())),
        (None, Some(name)) => Some(Secret::Variable(name.to_owned())),
        (Some(_), Some(_)) => {
            table.problem(variable, &format!("{file} and {variable} are two places; name one"));
            None
        }
        (None, None) => None,
    }
}
