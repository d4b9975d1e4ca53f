//! Notices through servers that others wrote, on loopback: Postfix with TLS, Alertmanager, and an HTTP server of Python.
//!
//! Postfix runs from a configuration, queue and mailbox of its own; it needs root. A server that is not installed is said
//! and left out.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leakscope_alerts::book::sample_finding;
use leakscope_alerts::channel::{Address, Dialect, Mail, Security, Transport, Web};
use leakscope_alerts::{Channel, Kind, Notice, Secret};

const PATIENCE: Duration = Duration::from_secs(60);

fn notice(kind: Kind, title: &str) -> Notice {
    let mut finding = sample_finding(1_700_000_000);
    finding.title = title.to_owned();
    Notice { kind, machine: "testhost".into(), at: 1_700_000_000, findings: vec![(kind, finding)], withheld: 0 }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for something that another process does; its end is an event that nobody tells us of.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_installed(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
    if !found {
        eprintln!("left out: {program} is not installed; cargo xtask setup installs it");
    }
    found
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Postfix {
    folder: tempfile::TempDir,
    start_tls: u16,
    tls: u16,
    /// Takes mail from those alone who show a password.
    login: u16,
}

const USER: &str = "alerts";
const PASSWORD: &str = "swordfish and=more";

impl Postfix {
    fn start() -> Option<Self> {
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        if !is_installed("postfix") || !is_root {
            return None;
        }
        // Not below /tmp's private folders: Postfix's users must get there.
        let folder = tempfile::Builder::new().prefix("leakscope-postfix").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["etc", "queue", "data", "mail"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        run("chown", &["postfix", &at("data")]);
        run("chown", &["nobody", &at("mail")]);
        // An authority and a certificate of its making: rustls takes no authority for a server.
        let request = |name: &str, key: &str, out: &str, more: &[&str]| {
            let (key, out) = (at(key), at(out));
            let mut words = vec!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", name];
            words.extend(["-keyout", key.as_str(), "-out", out.as_str()]);
            words.extend(more);
            run("openssl", &words);
        };
        request("/CN=leakscope test authority", "ca.key", "ca.pem", &[]);
        let (ca, ca_key) = (at("ca.pem"), at("ca.key"));
        let signed = ["-CA", ca.as_str(), "-CAkey", ca_key.as_str(), "-addext", "subjectAltName=DNS:localhost"];
        let more = [&signed[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat();
        request("/CN=localhost", "key.pem", "cert.pem", &more);
        let (start_tls, tls, login) = (free_port(), free_port(), free_port());
        fs::create_dir(folder.path().join("etc/sasl")).unwrap();
        let sasl = format!(
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: {}\n",
            at("etc/users")
        );
        fs::write(folder.path().join("etc/sasl/smtpd.conf"), sasl).unwrap();
        if is_installed("saslpasswd2") {
            let mut child = Command::new("saslpasswd2")
                .args(["-p", "-c", "-u", "localhost", "-f", &at("etc/users"), USER])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success());
            run("chown", &["postfix", &at("etc/users")]);
        }
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {}\ndata_directory = {}\nmyhostname = localhost\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmydestination =\n\
             virtual_mailbox_domains = example.test\nvirtual_mailbox_base = {}\nvirtual_mailbox_maps = static:inbox\n\
             virtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\nmaillog_file = {}\n\
             maillog_file_prefixes = {}\n\
             smtpd_tls_cert_file = {}\nsmtpd_tls_key_file = {}\nsmtpd_tls_security_level = encrypt\nalias_maps =\n\
             smtpd_sasl_type = cyrus\nsmtpd_sasl_path = smtpd\nsmtpd_sasl_local_domain = localhost\ncyrus_sasl_config_path = {}\n",
            at("queue"),
            at("data"),
            at("mail"),
            at("log"),
            at(""),
            at("cert.pem"),
            at("key.pem"),
            at("etc/sasl")
        );
        fs::write(folder.path().join("etc/main.cf"), main).unwrap();
        let master = format!(
            "127.0.0.1:{start_tls} inet n - n - - smtpd\n\
             127.0.0.1:{tls} inet n - n - - smtpd\n  -o smtpd_tls_wrappermode=yes\n\
             127.0.0.1:{login} inet n - n - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n  -o smtpd_tls_auth_only=yes\n  \
             -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject\n  \
             -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n\
             pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
             rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n\
             virtual unix - n n - - virtual\nanvil unix - - n - 1 anvil\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
             error unix - - n - - error\nretry unix - - n - - error\nproxymap unix - - n - - proxymap\n\
             postlog unix-dgram n - n - 1 postlogd\n"
        );
        fs::write(folder.path().join("etc/master.cf"), master).unwrap();
        run("postfix", &["-c", &at("etc"), "start"]);
        wait_for("Postfix", || TcpStream::connect(("127.0.0.1", tls)).ok());
        Some(Self { folder, start_tls, tls, login })
    }

    fn mail(&self, port: u16, security: Security, ca: bool) -> Channel {
        Channel::Mail(Mail {
            from: "leakscope <leakscope@example.test>".into(),
            to: vec!["Ops <ops@example.test>".into(), "second@example.test".into()],
            transport: Transport::Smtp {
                host: "localhost".into(),
                port,
                security,
                ca_file: ca.then(|| self.folder.path().join("ca.pem")),
                login: None,
            },
        })
    }

    /// The channel to the port that asks for a password, which stands in a file.
    fn with_login(&self, password: Option<&str>) -> Channel {
        let login = password.map(|password| {
            let path = self.folder.path().join("password");
            fs::write(&path, format!("{password}\n")).unwrap();
            (USER.to_owned(), Secret::File(path))
        });
        let Channel::Mail(mail) = self.mail(self.login, Security::StartTls, true) else { unreachable!() };
        let Transport::Smtp { host, port, security, ca_file, .. } = mail.transport else { unreachable!() };
        Channel::Mail(Mail { transport: Transport::Smtp { host, port, security, ca_file, login }, ..mail })
    }

    fn inbox(&self) -> String {
        fs::read(self.folder.path().join("mail/inbox"))
            .map_or(String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let etc = self.folder.path().join("etc");
        let _ = Command::new("postfix").arg("-c").arg(etc).arg("stop").stderr(Stdio::null()).status();
    }
}

#[test]
fn mail_arrives_over_starttls_and_tls() {
    let Some(postfix) = Postfix::start() else { return };
    let title = "name:shop: memory grows by 60 MB/h\r\nBcc: everybody@example.test";
    postfix.mail(postfix.start_tls, Security::StartTls, true).send(&notice(Kind::Opened, title)).unwrap();
    postfix.mail(postfix.tls, Security::Tls, true).send(&notice(Kind::Resolved, "over TLS")).unwrap();
    // Two recipients share a mailbox, and each gets both.
    let inbox = wait_for("the mail", || Some(postfix.inbox()).filter(|text| text.matches("\nSubject: ").count() >= 4));
    let headers = inbox.split("\n\n").next().unwrap();
    assert!(!inbox.contains("\nBcc:"), "{headers}");
    assert!(inbox.contains("[leakscope] testhost: growing: name:shop"), "{headers}");
    assert!(
        inbox.contains("multipart/alternative") && inbox.contains("multipart/related") && inbox.contains("image/png")
    );
    assert!(inbox.contains("Content-ID: <chart0>") && inbox.contains("leakscope monitor why name:example"));
    // A certificate that nobody vouches for, and a server that offers no TLS there, get nothing.
    let stranger = postfix.mail(postfix.tls, Security::Tls, false).send(&notice(Kind::Test, "x")).unwrap_err();
    assert!(stranger.to_string().to_lowercase().contains("certificate"), "{stranger}");
    let clear = postfix.mail(postfix.start_tls, Security::None, true).send(&notice(Kind::Test, "x")).unwrap_err();
    assert!(clear.to_string().contains("STARTTLS"), "{clear}");
}

#[test]
fn a_server_that_asks_for_a_password_gets_it() {
    let Some(postfix) = Postfix::start() else { return };
    if !is_installed("saslpasswd2") {
        return;
    }
    postfix.with_login(Some(PASSWORD)).send(&notice(Kind::Opened, "with a password")).unwrap();
    // One mail to two recipients, who share a mailbox.
    let count = |text: &String| text.matches("\nSubject: ").count();
    wait_for("the mail", || Some(postfix.inbox()).filter(|text| count(text) == 2));
    assert!(postfix.inbox().contains("with a password"));
    let wrong = postfix.with_login(Some("sw0rdfish")).send(&notice(Kind::Opened, "x")).unwrap_err().to_string();
    assert!(wrong.contains("535") && !wrong.contains("sw0rdfish"), "{wrong}");
    let none = postfix.with_login(None).send(&notice(Kind::Opened, "x")).unwrap_err().to_string();
    assert!(none.contains("554"), "{none}");
    assert_eq!(count(&postfix.inbox()), 2);
}

/// What Python's parser of mails understands of the newest mail in a mailbox.
const READER: &str = r#"
import email, email.policy, json, mailbox, sys
mail = list(mailbox.mbox(sys.argv[1]))[-1]
mail = email.message_from_bytes(mail.as_bytes(), policy=email.policy.default)
print(json.dumps({'names': sorted({k.lower() for k in mail.keys()}), 'subject': mail['Subject'], 'to': mail['To'],
    'text': mail.get_body(('plain',)).get_content()}))
"#;

#[test]
fn hostile_names_through_the_local_sendmail() {
    let Some(postfix) = Postfix::start() else { return };
    let program = postfix.folder.path().join("sendmail");
    let etc = postfix.folder.path().join("etc");
    fs::write(&program, format!("#!/bin/sh\nexec /usr/sbin/sendmail -C {} \"$@\"\n", etc.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let channel = Channel::Mail(Mail {
        from: "leakscope <leakscope@example.test>".into(),
        to: vec!["Ops <ops@example.test>".into()],
        transport: Transport::Sendmail(program),
    });
    let mut plain = vec![];
    for (number, name) in [
        "x\r\nBcc: everybody@example.test",
        "x\n\nbody",
        "=?utf-8?Q?x=0D=0ABcc:_everybody@example.test?=",
        "\u{202e}\u{0}\u{1b}[31m",
        ".\r\n.\r\nQUIT",
        "-oQ/tmp -X/tmp/x",
    ]
    .into_iter()
    .enumerate()
    {
        let mut notice = notice(Kind::Opened, &format!("name:{name}: memory grows"));
        notice.findings[0].1.details = vec![format!("detail {name}"), ".".to_owned()];
        notice.machine = name.to_owned();
        channel.send(&notice).unwrap();
        let count = number + 1;
        wait_for("the mail", || Some(postfix.inbox()).filter(|text| text.matches("\nSubject: ").count() == count));
        let inbox = postfix.folder.path().join("mail/inbox");
        let output = Command::new("python3").args(["-c", READER]).arg(&inbox).output().unwrap();
        let mail: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(mail["to"], "Ops <ops@example.test>", "{name:?}");
        assert!(!mail["names"].to_string().contains("bcc"), "{name:?}: {mail:#}");
        let subject = mail["subject"].as_str().unwrap();
        assert!(!subject.contains(['\r', '\n']) && subject.starts_with("[leakscope] "), "{subject:?}");
        let text = mail["text"].as_str().unwrap();
        assert!(text.contains("next: leakscope monitor why"), "the text goes to its end: {text}");
        plain.push(mail["names"].clone());
    }
    assert!(plain.windows(2).all(|pair| pair[0] == pair[1]), "no name makes a header: {plain:#?}");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn alertmanager_opens_and_ends_alerts() {
    if !is_installed("prometheus-alertmanager") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("am.yml");
    fs::write(&config, "route:\n  receiver: none\nreceivers:\n  - name: none\n").unwrap();
    let port = free_port();
    let child = Command::new("prometheus-alertmanager")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", folder.path().display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Server(child);
    wait_for("Alertmanager", || TcpStream::connect(("127.0.0.1", port)).ok());
    let url = format!("http://127.0.0.1:{port}");
    let channel = Channel::Web(Web {
        dialect: Dialect::Alertmanager,
        address: Address::Plain(url.clone()),
        secret: None,
        token: None,
    });
    let mut now = notice(Kind::Opened, "name:shop: memory grows");
    now.at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    wait_for("the first answer", || channel.send(&now).ok());
    let alerts = |query: &str| -> String {
        let mut answer = ureq::get(format!("{url}/api/v2/alerts{query}")).call().unwrap();
        answer.body_mut().read_to_string().unwrap()
    };
    let open = wait_for("the alert", || Some(alerts("")).filter(|text| text.contains("LeakscopeGrowth")));
    assert!(open.contains("\"instance\":\"testhost\"") && open.contains("name:shop: memory grows"), "{open}");
    now.findings[0].0 = Kind::Resolved;
    channel.send(&now).unwrap();
    wait_for("its end", || Some(alerts("?active=true")).filter(|text| !text.contains("LeakscopeGrowth")));
}

/// Answers with the status and body that the path asks for, and writes each request to a file.
const SERVER: &str = r#"
import sys, http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        with open(sys.argv[2], 'a') as log:
            log.write(json.dumps({'path': self.path, 'headers': dict(self.headers), 'body': body}) + '\n')
        status = 503 if self.path.startswith('/busy') else 403 if self.path.startswith('/no') else 200
        answer = b'{"code":19021,"msg":"sign match fail"}' if self.path.startswith('/feishu-no') else b'{"code":0,"errcode":0}'
        self.send_response(status); self.send_header('Content-Length', str(len(answer))); self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *words): pass
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"#;

#[test]
fn web_channels_sign_and_tell_refusals_apart() {
    if !is_installed("python3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (log, port) = (folder.path().join("log"), free_port());
    let script = folder.path().join("server.py");
    fs::write(&script, SERVER).unwrap();
    fs::write(folder.path().join("secret"), "swordfish\n").unwrap();
    let child = Command::new("python3").arg(&script).arg(port.to_string()).arg(&log).spawn().unwrap();
    let _server = Server(child);
    wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).ok());
    let secret = || Some(Secret::File(folder.path().join("secret")));
    let send = |dialect, path: &str, secret| {
        let address = Address::Plain(format!("http://127.0.0.1:{port}{path}"));
        Channel::Web(Web { dialect, address, secret, token: None }).send(&notice(Kind::Opened, "x"))
    };
    send(Dialect::Webhook, "/hook", secret()).unwrap();
    send(Dialect::Slack, "/slack", None).unwrap();
    send(Dialect::DingTalk, "/ding?access_token=abc", secret()).unwrap();
    send(Dialect::Feishu, "/feishu", secret()).unwrap();
    let refusal = |dialect, path| send(dialect, path, None).unwrap_err().to_string();
    assert!(
        refusal(Dialect::Webhook, "/busy").contains("503")
            && refusal(Dialect::Webhook, "/busy").contains("tried again")
    );
    assert!(refusal(Dialect::Webhook, "/no?token=t0ken").contains("403"));
    assert!(!refusal(Dialect::Webhook, "/no?token=t0ken").contains("t0ken"));
    assert!(refusal(Dialect::Feishu, "/feishu-no").contains("sign match fail"));
    let requests: Vec<serde_json::Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let hook = &requests[0];
    let header = |name: &str| hook["headers"][name].as_str().unwrap().to_owned();
    // The oracle is OpenSSL.
    let signed = folder.path().join("signed");
    fs::write(&signed, format!("{}.{}", header("x-leakscope-timestamp"), hook["body"].as_str().unwrap())).unwrap();
    let output = Command::new("openssl").args(["dgst", "-sha256", "-hmac", "swordfish"]).arg(&signed).output().unwrap();
    let expected = String::from_utf8_lossy(&output.stdout).trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(header("x-leakscope-signature"), format!("sha256={expected}"));
    assert!(requests[2]["path"].as_str().unwrap().starts_with("/ding?access_token=abc&timestamp="));
    assert!(requests[3]["body"].as_str().unwrap().contains("\"sign\":"));
    let all = fs::read_to_string(&log).unwrap();
    assert!(!all.contains("swordfish"));
}
