// Package testkit is what dray's tests are made with; no program imports it.
//
// Images to order, deterministic, on disk in an OCI layout:
//
//	layout := testkit.Layout(t)
//	image := testkit.Image(t).
//		Layer(testkit.Dir("bin"), testkit.File("bin/sh", "#!").Chmod(0o755)).Zstd().
//		Layer(testkit.Whiteout("bin/sh")).
//		Config(func(c *oci.Image) { c.Config.Cmd = []string{"/bin/sh"} }).
//		Write(layout, "v1")
//
// [Odd] returns every image that has broken a puller, each with the tree or the
// error that is right. [Tree] lists a directory, [Expect] says what layers should
// become, [Diff] compares the two.
//
// A real registry, and one that misbehaves to order:
//
//	registry := testkit.Registry(t, dir, testkit.Stall("/blobs/", 1000))
//	client.Pull(registry.Ref("app:v1"))
//
// [NoLeaks] ends a test with nothing left running, open or mounted; [Need] skips
// what the machine cannot do; [Cgroup] runs a command in a bounded memory.
package testkit
