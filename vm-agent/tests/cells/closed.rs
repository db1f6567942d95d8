//! A cell is as isolated as an instance from an image: seen from the engine, and from inside.

use crate::support::{Base, World, docker, function, image_of};
use serde_json::Value;

/// What differs by name or on purpose: its identity, and the directory that the code is mounted
/// into.
const OWN: [&str; 2] = ["Mounts", "NetworkMode"];

const INSIDE: &str = r#"
const fs = require('node:fs');
const tried = (work) => { try { work(); return 'done'; } catch (e) { return e.code; } };
const status = (name) => fs.readFileSync('/proc/self/status', 'utf8').match(new RegExp(`^${name}:\\s*(.*)$`, 'm'))[1];
exports.hello = (req, res) => {
  if (req.path === '/mounts') return res.send(fs.readFileSync('/proc/self/mountinfo', 'utf8'));
  res.json({
    writes: ['/app/x', '/app/index.js', '/x', '/epsilon/x', '/tmp/x'].map((path) => tried(() => fs.writeFileSync(path, ''))),
    remount: require('node:child_process').spawnSync('mount', ['-o', 'remount,rw', '/app']).status !== 0,
    unmount: require('node:child_process').spawnSync('umount', ['/app']).status !== 0,
    capabilities: status('CapEff') + status('CapBnd'), privileges: status('NoNewPrivs'), seccomp: status('Seccomp'),
    files: fs.readdirSync('/app'),
  });
};
"#;

fn inspect(container: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", container])).unwrap()[0].take()
}

#[tokio::test]
async fn it_is_hardened_as_an_instance_from_an_image() {
    let base = Base::new();
    let celled = World::new("{}").await;
    let hello = function(&celled, &base, INSIDE, |_| {});
    celled.until_ready(&hello, 1).await;
    let inside = celled.text(&hello, "/").await;
    let cell = inspect(&celled.container());

    let imaged = World::new("{cells_max: 0}").await;
    let (_image, same) = image_of(&base, INSIDE);
    assert_eq!(imaged.text(&same, "/").await, inside);
    let image = inspect(&imaged.containers()[0]);

    for container in [&cell, &image] {
        assert_eq!(container["Config"]["Healthcheck"]["Test"], serde_json::json!(["NONE"]));
    }
    let limits = cell["HostConfig"].as_object().unwrap();
    assert!(limits.len() > 40, "everything that Docker reports");
    for (key, value) in limits.iter().filter(|(key, _)| !OWN.contains(&key.as_str())) {
        assert_eq!(*value, image["HostConfig"][key], "{key}");
    }
    assert_eq!(cell["AppArmorProfile"], image["AppArmorProfile"]);
    let mount =
        cell["Mounts"].as_array().unwrap().iter().find(|m| m["Destination"] == "/app").unwrap();
    assert_eq!((&mount["RW"], &mount["Propagation"]), (&Value::Bool(false), &"rslave".into()));

    let inside: Value = serde_json::from_str(&inside).unwrap();
    assert_eq!(inside["writes"], serde_json::json!(["EROFS", "EROFS", "EROFS", "EROFS", "done"]));
    assert_eq!((&inside["remount"], &inside["unmount"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(inside["files"], serde_json::json!(["index.js"]));
    celled.end().await;
    imaged.end().await;
}

#[tokio::test]
async fn cells_do_not_see_other_code() {
    let base = Base::new();
    let world = World::new("{}").await;
    let one = function(&world, &base, INSIDE, |_| {});
    let two = function(&world, &base, INSIDE, |_| {});
    world.until_ready(&one, 2).await;
    world.text(&one, "/").await;
    world.text(&two, "/").await;
    for version in [&one, &two] {
        let table = world.text(version, "/mounts").await;
        let overlays: Vec<&str> =
            table.lines().filter(|line| line.contains(" - overlay ")).collect();
        // Its own root, and its own code.
        assert_eq!(overlays.len(), 2, "{table}");
        let code = overlays.iter().find(|line| line.contains(" /app ")).unwrap();
        assert!(code.contains(" ro,nosuid,nodev"), "{code}");
        assert!(!code.contains("shared:"), "mounts do not propagate out: {code}");
        assert!(!table.contains("/cells "), "{table}");
    }
    world.end().await;
}
