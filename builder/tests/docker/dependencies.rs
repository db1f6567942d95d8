//! npm packages: installed in a container, cached, and put into a layer of their own.

use super::lab::{Lab, Served, add, docker, file_of};
use epsilon_api::{
    admin::Step,
    build::{BuildError, Built},
};

const INDEX: (&str, &str) = (
    "index.js",
    "const ms = require('ms');\nexports.hello = (req, res) => res.send(String(ms('2s')));\n",
);

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_installed_once_and_served() {
    let lab = Lab::new().await;
    let package = ("package.json", r#"{"name":"lab-npm","dependencies":{"ms":"2.1.3"}}"#);
    let built = lab.build(&[package, INDEX]).await.unwrap();
    assert!(lab.done(Step::Dependencies).starts_with("installed"));
    assert!(lab.lines().contains("no lockfile"), "{}", lab.lines());
    let image = built.functions[0].image.reference.clone();
    assert_eq!(Served::run(&image).get("/"), "2000");

    let changed = ("index.js", "exports.hello = (q, s) => s.send(require('ms')(3));");
    lab.build(&[package, changed]).await.unwrap();
    assert!(lab.done(Step::Dependencies).starts_with("cached"));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lockfile_is_honoured() {
    let lab = Lab::new().await;
    let package = ("package.json", r#"{"name":"lab-lock","dependencies":{"ms":"^2.0.0"}}"#);
    let lock = r#"{"name":"lab-lock","lockfileVersion":3,"requires":true,"packages":{
        "":{"name":"lab-lock","dependencies":{"ms":"^2.0.0"}},
        "node_modules/ms":{"version":"2.1.2"}}}"#;
    let built = lab.build(&[package, ("package-lock.json", lock), INDEX]).await.unwrap();
    let installed =
        file_of(&built.functions[0].image.reference, "/app/node_modules/ms/package.json");
    assert!(installed.unwrap().contains("\"version\": \"2.1.2\""));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_package_is_reported_with_npms_output() {
    let lab = Lab::new().await;
    let package = r#"{"dependencies":{"epsilon-no-such-package-7d1f":"1.0.0"}}"#;
    let err = lab.build(&[("package.json", package), INDEX]).await.unwrap_err();
    assert_eq!(err.code, "DEPENDENCIES_FAILED");
    assert!(err.message.contains("epsilon-no-such-package-7d1f"), "{}", err.message);
    assert!(err.hint.is_some());
    lab.end().await;
}

/// A package as a tarball.
fn packed(package: &serde_json::Value, files: &[(&str, &str)]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    add(&mut tar, "package/package.json", package.to_string().as_bytes());
    for (path, content) in files {
        add(&mut tar, &format!("package/{path}"), content.as_bytes());
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// A project with one package, packed as `dep.tgz`.
async fn with_package(
    lab: &Lab,
    files: &[(&str, &str)],
    package: &[u8],
) -> Result<Built, BuildError> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    add(&mut tar, "dep.tgz", package);
    for (path, content) in files {
        add(&mut tar, path, content.as_bytes());
    }
    lab.build_archive(tar.into_inner().unwrap().finish().unwrap()).await
}

/// A project whose one package runs this when it is installed.
async fn with_script(lab: &Lab, script: &str) -> Result<Built, BuildError> {
    let package = serde_json::json!({
        "name": "dep", "version": "1.0.0", "scripts": { "install": script },
    });
    let files = [
        ("package.json", r#"{"name":"lab-script","dependencies":{"dep":"file:./dep.tgz"}}"#),
        ("index.js", "exports.hello = (req, res) => res.send('hi');"),
    ];
    with_package(lab, &files, &packed(&package, &[])).await
}

/// The project's own scripts, one in a folder of it, and a package with a script beside them.
#[tokio::test(flavor = "multi_thread")]
async fn only_package_scripts_run_without_the_project() {
    let lab = Lab::new().await;
    let see = "require('fs').writeFileSync('seen', require('fs').readdirSync('/app').join())";
    let package = serde_json::json!({
        "name": "dep", "version": "1.0.0", "scripts": { "postinstall": format!("node -e \"{see}\"") },
    });
    let own = serde_json::json!({
        "name": "lab-own",
        "dependencies": { "dep": "file:./dep.tgz", "own": "file:./own" },
        "scripts": { "preinstall": "false", "install": "false", "postinstall": "false", "prepare": "false" },
    });
    let folder = r#"{"name":"own","version":"1.0.0","main":"i.js","scripts":{"install":"false","prepare":"false"}}"#;
    let files = [
        ("package.json", own.to_string()),
        ("own/package.json", folder.to_owned()),
        ("own/i.js", "module.exports = 'own'".to_owned()),
        (".npmrc", "//theirs.example/:_authToken=x".to_owned()),
        (
            "index.js",
            "const seen = require('fs').readFileSync(require.resolve('dep/seen'), 'utf8');\n\
                      exports.hello = (req, res) => res.send(seen + ' ' + require('own'));"
                .to_owned(),
        ),
    ];
    let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let built = with_package(&lab, &files, &packed(&package, &[])).await.unwrap();
    assert!(lab.lines().contains("own `preinstall` script is not run"), "{}", lab.lines());
    assert!(lab.lines().contains("scripts of `own`, a folder"), "{}", lab.lines());
    let image = &built.functions[0].image.reference;
    assert_eq!(Served::run(image).get("/"), "node_modules,package.json own");
    lab.end().await;
}

/// npm's own list of installed packages does not say that a package brings its binary.
#[tokio::test(flavor = "multi_thread")]
async fn package_with_prebuilt_binary_needs_no_compiler() {
    let lab = Lab::new().await;
    let package = serde_json::json!({
        "name": "dep", "version": "1.0.0", "gypfile": false, "scripts": { "postinstall": "true" },
    });
    let binding = ("binding.gyp", "{}");
    let files = [
        ("package.json", r#"{"name":"lab-gyp","dependencies":{"dep":"file:./dep.tgz"}}"#),
        ("index.js", "exports.hello = (req, res) => res.send('hi');"),
    ];
    with_package(&lab, &files, &packed(&package, &[binding])).await.unwrap();
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_script_cannot_have_this_machines_files_packed() {
    let lab = Lab::new().await;
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("key"), "x").unwrap();
    let script =
        format!("cd /app; mv node_modules n; ln -s {} node_modules", secret.path().display());
    let err = with_script(&lab, &script).await.unwrap_err();
    assert_eq!(err.code, "DEPENDENCIES_FAILED");
    assert!(err.message.contains("replaced `node_modules`"), "{}", err.message);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn project_npmrc_cannot_run_code_beside_the_cache() {
    let lab = Lab::new().await;
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    let package = br#"{"dependencies":{"dep":"file:./dep","x":"git+https://localhost:1/x.git"}}"#;
    add(&mut tar, "package.json", package);
    add(&mut tar, ".npmrc", b"git=/app/git.sh\n");
    add(&mut tar, "dep/package.json", br#"{"name":"dep","version":"1.0.0"}"#);
    let script = b"#!/bin/sh\necho it ran >&2; exit 1\n";
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(script.len() as u64);
    tar.append_data(&mut header, "git.sh", &script[..]).unwrap();
    add(&mut tar, "index.js", b"exports.hello = (req, res) => res.end();");
    let archive = tar.into_inner().unwrap().finish().unwrap();
    let err = lab.build_archive(archive).await.unwrap_err();
    assert_eq!(err.code, "DEPENDENCIES_FAILED");
    assert!(!err.message.contains("it ran"), "{}", err.message);
    assert!(err.hint.is_some_and(|hint| hint.contains("no git")));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_that_fill_the_disk_are_refused() {
    let lab = Lab::with("{install_size: 64MiB}").await;
    for script in [
        "truncate -s 60M /app/node_modules/a /app/node_modules/b",
        "for n in $(seq 100); do head -c 10M /dev/zero > /app/$n; done; sleep 60",
    ] {
        let err = with_script(&lab, script).await.unwrap_err();
        assert_eq!(err.code, "DEPENDENCIES_FAILED");
        assert!(err.message.contains("more than 64MiB"), "{}", err.message);
    }
    lab.end().await;
}

/// Below a path of 4,096 bytes nothing can be measured by its path, and a cached tree is deeper
/// than the one that was made: the next start met names that were too long.
#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_folders_are_refused_and_harmless() {
    let lab = Lab::with("{install_size: 64MiB}").await;
    let nest = "for(let n=0;n<2005;n++){fs.mkdirSync('a');process.chdir('a')}";
    let err =
        with_script(&lab, &format!("cd /app/node_modules; node -e \"{nest}\"")).await.unwrap_err();
    assert_eq!(err.code, "DEPENDENCIES_FAILED");
    assert!(err.message.contains("128 nested folders"), "{}", err.message);

    // Everything that fills the disk is too deep for a path.
    let fill = "const b=Buffer.alloc(1<<20);for(let n=0;n<200;n++)fs.writeFileSync('f'+n,b)";
    let err = with_script(
        &lab,
        &format!("cd /app/node_modules; node -e \"{nest};{fill};setTimeout(()=>{{}},60000)\""),
    )
    .await
    .unwrap_err();
    assert!(err.message.contains("128 nested folders"), "{}", err.message);
    with_script(&lab, "true").await.unwrap();
    lab.restart().await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn installs_cannot_reach_the_metadata_service() {
    let lab = Lab::new().await;
    with_script(&lab, "ip=$(hostname -i); echo at $ip").await.unwrap();
    let network = format!("epsilon-builder-{}", lab.id());
    let icc = r#"{{index .Options "com.docker.network.bridge.enable_icc"}}"#;
    assert_eq!(docker(&["network", "inspect", "-f", icc, &network]), "false");
    let subnet =
        docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &network]);
    let prefix = subnet.rsplit_once('.').unwrap().0;
    assert!(lab.lines().contains(&format!("at {prefix}.")), "{subnet} {}", lab.lines());
    let rules = || {
        let rules =
            std::process::Command::new("iptables").args(["-t", "raw", "-S"]).output().unwrap();
        String::from_utf8(rules.stdout).unwrap()
    };
    let rule = format!("-A PREROUTING -d 169.254.169.254/32 -i epb{} -j DROP", lab.id());
    assert!(rules().contains(&rule), "{}", rules());
    lab.end().await;
    assert!(!rules().contains(&rule), "{}", rules());
}

#[tokio::test(flavor = "multi_thread")]
async fn install_scripts_run_without_the_shared_cache() {
    let lab = Lab::new().await;
    let script = "node -e \\\"require('fs').writeFileSync('seen.txt', \
                  [require('fs').existsSync('/npm'), process.getuid()].join())\\\"";
    let package = format!(
        r#"{{"name":"dep","version":"1.0.0","main":"i.js","scripts":{{"install":"{script}"}}}}"#
    );
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut dep = tar::Builder::new(gz);
    add(&mut dep, "package/package.json", package.as_bytes());
    add(
        &mut dep,
        "package/i.js",
        b"module.exports = require('fs').readFileSync(__dirname + '/seen.txt', 'utf8')",
    );
    let dep = dep.into_inner().unwrap().finish().unwrap();

    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    add(
        &mut tar,
        "package.json",
        br#"{"name":"lab-script","dependencies":{"dep":"file:./dep.tgz"}}"#,
    );
    add(&mut tar, "dep.tgz", &dep);
    add(&mut tar, "index.js", b"exports.hello = (req, res) => res.send(require('dep'));");
    let built = lab.build_archive(tar.into_inner().unwrap().finish().unwrap()).await.unwrap();
    let user = if rustix::process::geteuid().is_root() {
        65532
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), format!("false,{user}"));
    lab.end().await;
}

/// A package of the registry that brings its binaries, and declares it where npm's list of an
/// install does not.
#[tokio::test(flavor = "multi_thread")]
async fn better_sqlite3_installs_with_and_without_lockfile() {
    let lab = Lab::new().await;
    let package = (
        "package.json",
        r#"{"name":"lab-sqlite","private":true,"dependencies":{"better-sqlite3":"13.2.0"}}"#,
    );
    let lock = (
        "package-lock.json",
        r#"{"name":"lab-sqlite","lockfileVersion":3,"requires":true,"packages":{
            "":{"name":"lab-sqlite","dependencies":{"better-sqlite3":"13.2.0"}},
            "node_modules/better-sqlite3":{"version":"13.2.0","dependencies":{"node-addon-api":"^8.0.0"}},
            "node_modules/node-addon-api":{"version":"8.9.2"}}}"#,
    );
    let index = (
        "index.js",
        "const Database = require('better-sqlite3');\n\
         exports.hello = (req, res) => res.json(new Database(':memory:').prepare('select 1+1 as n').get());",
    );
    for files in [vec![package, index], vec![package, lock, index]] {
        let built = lab.build(&files).await.unwrap();
        assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), r#"{"n":2}"#);
    }
    lab.end().await;
}

/// `patch-package` is a development package: its script is for the developer's machine.
#[tokio::test(flavor = "multi_thread")]
async fn projects_own_postinstall_is_ignored() {
    let lab = Lab::new().await;
    let package = (
        "package.json",
        r#"{"name":"lab-own","scripts":{"postinstall":"patch-package"},
            "devDependencies":{"patch-package":"8.0.0"},"dependencies":{"esbuild":"0.25.0"}}"#,
    );
    let index = ("index.js", "exports.hello = (req, res) => res.send(require('esbuild').version);");
    let built = lab.build(&[package, index]).await.unwrap();
    assert!(lab.lines().contains("own `postinstall` script is not run"), "{}", lab.lines());
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "0.25.0");
    lab.end().await;
}
