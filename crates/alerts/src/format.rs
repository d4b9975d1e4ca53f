//! A notice as text, HTML and JSON, and in the words of the services that take it. Pure.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::book::{Finding, Kind, Notice};

/// One line for subjects and first lines.
pub fn subject(notice: &Notice) -> String {
    let first = notice.findings.first().map_or("", |(_, finding)| finding.title.as_str());
    let more = match notice.findings.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let word = notice.kind.word();
    let line = one_line(&format!("[leakscope] {}: {word}: {first}{more}", notice.machine));
    // An encoded word in a name would be decoded by who reads the mail, line ends and all.
    line.replace("=?", "= ?")
}

/// All of it as plain text.
pub fn text(notice: &Notice) -> String {
    let mut out = String::new();
    for (kind, finding) in &notice.findings {
        let _ = writeln!(out, "{} ({})", one_line(&finding.title), kind.word());
        for line in &finding.lines() {
            let _ = writeln!(out, "  {}", one_line(line));
        }
        let _ = writeln!(out, "  since {}", time(finding.since));
        let _ = writeln!(out, "  next: {}\n", one_line(&finding.next));
    }
    if notice.withheld > 0 {
        let _ = writeln!(out, "{} notices were withheld: the maximum a day was reached.\n", notice.withheld);
    }
    let _ = writeln!(out, "leakscope monitor on {}, {}", one_line(&notice.machine), time(notice.at));
    out
}

/// All of it as HTML; `picture` gives the source of the picture of the nth finding, if it has one.
pub fn html(notice: &Notice, picture: impl Fn(usize) -> Option<String>) -> String {
    let mut out = String::from(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"></head><body style=\"font-family:sans-serif;max-width:44em\">",
    );
    for (index, (kind, finding)) in notice.findings.iter().enumerate() {
        let _ = write!(out, "<h3>{} <small>({})</small></h3><ul>", escape(&finding.title), escape(kind.word()));
        for line in &finding.lines() {
            let _ = write!(out, "<li>{}</li>", escape(line));
        }
        let _ = write!(out, "<li>since {}</li></ul>", escape(&time(finding.since)));
        if let Some(source) = picture(index) {
            let _ = write!(out, "<p><img src=\"{}\" alt=\"{}\"></p>", escape(&source), escape(&finding.title));
            let _ = write!(out, "<p>{}</p>", escape(&range(finding)));
        }
        let _ = write!(out, "<p>next: <code>{}</code></p>", escape(&finding.next));
    }
    if notice.withheld > 0 {
        let _ = write!(out, "<p>{} notices were withheld: the maximum a day was reached.</p>", notice.withheld);
    }
    let _ = write!(out, "<p>leakscope monitor on {}, {}</p></body></html>", escape(&notice.machine), time(notice.at));
    out
}

fn range(finding: &Finding) -> String {
    let values = || finding.series.iter().map(|&(_, value)| value);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
    match (finding.series.first(), finding.series.last()) {
        (Some(first), Some(last)) => {
            format!("{} to {}: lowest {}, highest {}", time(first.0), time(last.0), short(low), short(high))
        }
        _ => String::new(),
    }
}

/// A number in three digits with its thousand's letter.
pub fn short(value: f64) -> String {
    let mut scaled = value.abs();
    for unit in ["", " k", " M", " G", " T"] {
        if scaled < 1000.0 {
            let digits = if scaled < 10.0 && !unit.is_empty() { 1 } else { 0 };
            return format!("{}{scaled:.digits$}{unit}", if value < 0.0 { "-" } else { "" });
        }
        scaled /= 1000.0;
    }
    format!("{value:e}")
}

/// For programs: what webhooks and commands get.
pub fn machine_readable(notice: &Notice) -> Value {
    let findings = notice.findings.iter().map(|(kind, finding)| {
        let evidence = finding.evidence.iter().map(|one| {
            json!({
                "source": one.source, "fingerprint": one.fingerprint, "is_new": one.known_since.is_none(),
                "known_since": one.known_since, "title": one.title, "stack": one.stack, "bytes": one.bytes,
                "blocks": one.blocks,
            })
        });
        json!({
            "state": kind, "key": finding.key, "target": finding.target, "title": finding.title,
            "details": finding.details, "evidence": evidence.collect::<Vec<_>>(), "next": finding.next, "value": finding.value, "per_hour": finding.per_hour,
            "hours_left": finding.hours_left, "since": finding.since, "urgent": finding.urgent,
        })
    });
    json!({
        "version": 1, "kind": notice.kind, "machine": notice.machine, "at": notice.at,
        "subject": subject(notice), "withheld": notice.withheld, "findings": findings.collect::<Vec<_>>(),
    })
}

/// For Slack's incoming webhooks, and what takes the same.
pub fn slack(notice: &Notice) -> Value {
    // The three characters that Slack's markup gives a meaning.
    let text = format!("{}\n{}", subject(notice), text(notice));
    json!({ "text": text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") })
}

/// For Feishu's and Lark's bots; `sign` is the time and signature, when the bot asks for them.
pub fn feishu(notice: &Notice, sign: Option<(u64, String)>) -> Value {
    let text = format!("{}\n{}", subject(notice), text(notice));
    let mut message = json!({ "msg_type": "text", "content": { "text": text.replace('<', "\u{2039}") } });
    if let Some((timestamp, sign)) = sign {
        message["timestamp"] = json!(timestamp.to_string());
        message["sign"] = json!(sign);
    }
    message
}

/// For DingTalk's bots.
pub fn dingtalk(notice: &Notice) -> Value {
    json!({ "msgtype": "text", "text": { "content": format!("{}\n{}", subject(notice), text(notice)) } })
}

/// For Alertmanager's version 2: one alert a finding, open until `keep_seconds` from now, or ended.
pub fn alertmanager(notice: &Notice, keep_seconds: u64) -> Value {
    let alerts = notice.findings.iter().map(|(kind, finding)| {
        let end = if *kind == Kind::Resolved { notice.at } else { notice.at + keep_seconds };
        // What changes from notice to notice must not be a label: labels are the alert's identity.
        json!({
            "labels": {
                "alertname": if *kind == Kind::Test { "LeakscopeTest" } else { "LeakscopeGrowth" },
                "instance": notice.machine, "target": finding.target, "key": finding.key,
            },
            "annotations": {
                "summary": finding.title, "description": finding.lines().join("\n"), "next": finding.next,
            },
            "startsAt": time(finding.since), "endsAt": time(end),
        })
    });
    Value::Array(alerts.collect())
}

/// RFC 3339, in UTC.
pub fn time(seconds: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).map(|at| at.to_string()).unwrap_or_default()
}

/// Text without line ends: a name must not begin a header of its own.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::sample_finding;

    fn hostile() -> Notice {
        let mut finding = sample_finding(1_700_000_000);
        finding.title = "<script>alert(1)</script>\r\nBcc: all@example.org \"' & <!channel>".into();
        finding.details = vec!["</li><img src=x onerror=y>".into()];
        Notice {
            kind: Kind::Opened,
            machine: "m\n1".into(),
            at: 1_700_000_000,
            findings: vec![(Kind::Opened, finding)],
            withheld: 2,
        }
    }

    #[test]
    fn names_stay_text_in_every_format() {
        let notice = hostile();
        assert!(!subject(&notice).contains(['\r', '\n']));
        let page = html(&notice, |_| Some("cid:\"x".into()));
        assert!(!page.contains("<script") && !page.contains("<img src=x") && page.contains("&lt;script&gt;"));
        assert!(page.contains("src=\"cid:&quot;x\""));
        assert!(!text(&notice).contains("\r\nBcc"));
        assert!(!slack(&notice)["text"].as_str().unwrap().contains("<!channel>"));
        assert!(!feishu(&notice, None).to_string().contains("<script"));
    }

    #[test]
    fn alerts_keep_their_identity_and_end() {
        let mut notice = hostile();
        let open = alertmanager(&notice, 3600);
        notice.findings[0].0 = Kind::Resolved;
        notice.findings[0].1.title = "other".into();
        let resolved = alertmanager(&notice, 3600);
        assert_eq!(open[0]["labels"], resolved[0]["labels"]);
        assert_eq!(
            (&open[0]["endsAt"], &resolved[0]["endsAt"]),
            (&json!("2023-11-14T23:13:20Z"), &json!("2023-11-14T22:13:20Z"))
        );
    }

    #[test]
    fn numbers() {
        let shown = [0.0, 999.0, 1000.0, 12_345.0, 4.88e8, -2e9].map(short);
        assert_eq!(shown, ["0", "999", "1.0 k", "12 k", "488 M", "-2.0 G"]);
    }
}
