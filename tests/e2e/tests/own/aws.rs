//! Machines of the AWS stack without AWS: the scripts of `infra/aws/instance` write settings and
//! make certificates in a folder per machine, with a fake `aws` that stores secrets in files, and
//! the parts run with these settings. All connections use TLS then.

use epsilon_e2e::{
    cli::{Outcome, run},
    network::Network,
    program::{Launch, Program, binary},
    wait::{SOON, until},
};
use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tokio::process::Command;

/// Secrets are files beside it, and so is the parameter.
const AWS: &str = r#"#!/bin/bash
here=$(dirname "$0")
while [ $# -gt 0 ]; do
  case "$1" in
    --secret-id) cat "$here/$2"; exit ;;
    get-parameter) cat "$here/parameter"; exit ;;
    --value) cp "${2#file://}" "$here/parameter"; exit ;;
  esac
  shift
done
exit 1
"#;

/// What Secrets Manager made with the stack.
const SECRETS: [(&str, &str); 6] = [
    ("fleet", "1a"),
    ("builder", "2b"),
    ("metrics", "3c"),
    ("admin", "4d"),
    ("gateways", "5e"),
    ("members", "6f"),
];

/// A stack: where its release package is unpacked, its AWS, and a root folder for each machine.
struct Stack {
    place: TempDir,
}

impl Stack {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let [package, aws] = ["package", "aws"].map(|name| place.path().join(name));
        fs::create_dir_all(package.join("aws")).unwrap();
        fs::create_dir(&aws).unwrap();
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/aws/instance");
        for file in fs::read_dir(scripts).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), package.join("aws").join(file.file_name())).unwrap();
        }
        // Programs are where the tests have them.
        script(&package.join("install.sh"), "#!/bin/sh\nmkdir -p \"$2/etc/epsilon\"\n");
        script(&aws.join("aws"), AWS);
        // The user `epsilon` is not on this machine.
        script(&aws.join("chown"), "#!/bin/sh\n");
        script(&aws.join("install"), "#!/bin/sh\nfor last; do :; done\nmkdir -p \"$last\"\n");
        for (name, digits) in SECRETS {
            fs::write(aws.join(name), digits.repeat(32)).unwrap();
        }
        fs::write(aws.join("parameter"), "not published yet").unwrap();
        Self { place }
    }

    fn authority(&self) -> PathBuf {
        self.place.path().join("aws/parameter")
    }

    /// Sets a machine up, and does what comes before a start of its unit. Answers its settings.
    async fn machine(&self, role: &str, address: IpAddr, gateway: IpAddr) -> String {
        let place = self.place.path();
        let root = place.join(role);
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", place.join("aws").display());
        let mut setup = Command::new(place.join("package/aws/setup.sh"));
        setup.env("EPSILON_SETUP_ROOT", &root).env("EPSILON_ROLE", role).env("PATH", &path);
        for (name, value) in [
            ("REGION", "us-east-1"),
            ("ADDRESS", &address.to_string()),
            ("LONGEST_CALL", "60s"),
            ("DRAIN_GRACE", "75s"),
            ("STOP_LIMIT", "185s"),
            ("KEEP_ALIVE", "100s"),
            ("FLEET_TOKEN_SECRET", "fleet"),
            ("BUILDER_TOKEN_SECRET", "builder"),
            ("METRICS_KEY_SECRET", "metrics"),
            ("ADMIN_KEY_SECRET", "admin"),
            ("MEMBER_AUTHORITY_SECRET", "members"),
            ("GATEWAY_AUTHORITY_SECRET", "gateways"),
            ("AUTHORITY_PARAMETER", "parameter"),
            ("CONTROL_NAME", "control.internal"),
            ("JOIN", &format!("{gateway}:8081")),
            ("PUBLIC_URL", &format!("https://{gateway}:8080")),
            ("VPC_CIDR", "192.0.2.0/24"),
            ("REGISTRY", "none"),
            ("VM_GROUP", "none"),
            ("VM_MIN", "1"),
            ("VM_MAX", "2"),
        ] {
            setup.env(format!("EPSILON_{name}"), value);
        }
        run(setup).await.expect(0);
        let mut start = Command::new(place.join("package/aws/secrets.sh"));
        start.env("EPSILON_SETUP_ROOT", &root).env("PATH", &path);
        let env = fs::read_to_string(root.join("etc/epsilon/aws.env")).unwrap();
        start.envs(env.lines().map(|line| line.split_once('=').unwrap()));
        run(start).await.expect(0);

        let settings = fs::read_to_string(root.join("etc/epsilon/epsilon.yaml")).unwrap();
        // No scale group and no registry; and only the addresses that are this test's.
        let lines = settings.lines().filter(|line| {
            let is_aws = line.starts_with("    ") || line.starts_with("  registry:");
            !is_aws && !line.starts_with("  autoscale:")
        });
        let lines: String = lines.flat_map(|line| [line, "\n"]).collect();
        let folder = root.join("etc/epsilon").display().to_string();
        lines.replace("/etc/epsilon", &folder).replace("0.0.0.0", &gateway.to_string())
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn machines_with_certificates_of_the_stack_serve_calls() {
    let network = Network::start(1);
    let (host, vm) = (network.host(), network.address(0));
    let stack = Stack::new();
    // In this order, as in the template: a gateway publishes the authority that the others trust.
    let settings = stack.machine("gateway", host, host).await;
    let config = Some(settings);
    let gateway =
        Program::start(Launch { binary: "epsilon-gateway", config, ..Launch::default() }).await;
    let ready = format!("calls https://{host}:8080  control https://{host}:8081");
    assert!(gateway.ready().contains(&ready), "{}", gateway.ready());

    let token =
        |file: &str| ["--token-file".to_owned(), gateway.data().join(file).display().to_string()];
    // Its firewall is that of its namespace, while the engine's bridges are the machine's.
    let away = "  dangerous_allow_metadata: true\n";
    let _agent = Program::start(Launch {
        binary: "epsilon-vm-agent",
        arguments: token("fleet.token").to_vec(),
        config: Some(stack.machine("vm-agent", vm, host).await + away),
        netns: Some(network.netns(0)),
        ..Launch::default()
    })
    .await;
    let _builder = Program::start(Launch {
        binary: "epsilon-builder",
        arguments: token("builder.token").to_vec(),
        config: Some(stack.machine("builder", host, host).await),
        ..Launch::default()
    })
    .await;
    until("both have joined", SOON, async || {
        let log = gateway.log();
        match log.matches("Member was registered in the store.").count() {
            2 => Ok(()),
            _ => Err(log),
        }
    })
    .await;

    // A person with what the parameter holds.
    let place = TempDir::new().unwrap();
    let epsilon = async |arguments: &[&str]| -> Outcome {
        let mut command = Command::new(binary("epsilon"));
        command
            .args(arguments)
            .current_dir(place.path())
            .env("EPSILON_GATEWAY", format!("https://{host}:8081"))
            .env("EPSILON_CA", stack.authority())
            .env("EPSILON_KEY", gateway.data_file("admin.key"));
        run(command).await
    };
    epsilon(&["init", "shop"]).await.expect(0);
    epsilon(&["deploy", "shop"]).await.expect(0);
    let functions = epsilon(&["functions", "--json"]).await.expect(0).json();
    let url = functions[0]["url"].as_str().unwrap_or_else(|| panic!("{functions}")).to_owned();
    assert!(url.starts_with(&format!("https://{host}:8080/")), "{url}");

    let curl = async |option: &[&str], url: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*"]).args(option).arg(url);
        run(command).await
    };
    let authority = stack.authority();
    let knowing = ["--cacert", authority.to_str().unwrap()];
    let invoked = epsilon(&["invoke", "hello"]).await.expect(0);
    let called = curl(&knowing, &url).await.expect(0);
    assert_eq!(called.stdout.trim(), invoked.stdout.trim());
    assert!(called.stdout.contains("Hello"), "{called}");
    for plain in [format!("http://{host}:8080/"), format!("http://{host}:8081/healthz")] {
        assert!(curl(&knowing, &plain).await.expect(0).stdout.contains("TLS_REQUIRED"), "{plain}");
    }
    // The VM's listener is for gateways only: it refuses peers without a certificate.
    let refused = curl(&["--insecure"], &format!("https://{vm}:8082/")).await;
    assert_ne!(refused.code, 0, "{refused}");
}
