//! The builder with a real Docker Engine: the base, composed images, dependencies, loading,
//! destinations. Without an engine these tests fail.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod base;
mod command;
mod compose;
mod containers;
mod dependencies;
mod graph;
mod lab;
mod layout;
mod loading;
mod member;
mod npmrc;
mod registry;
