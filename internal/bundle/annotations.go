package bundle

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"dray/internal/oci"
)

// orders are the prefixes of annotations that runtimes obey: files of the host
// that they write, hooks, properties of units, the hypervisor. They are for who
// runs a container, not for who built its image.
func orders() []string {
	return []string{
		"run.oci.",              // crun
		"module.wasm.",          // crun
		"org.systemd.property.", // runc, crun
		"org.criu.",             // runc
		"io.katacontainers.",    // Kata Containers
		"dev.gvisor.",           // runsc
	}
}

// annotations returns what image-spec's conversion.md ("Annotation Fields")
// derives from image, with its labels, which win, and the user's, which win over
// both.
func annotations(image *oci.Image, o *Options) map[string]string {
	all := map[string]string{}
	put := func(name, value string) {
		if value != "" {
			all["org.opencontainers.image."+name] = value
		}
	}
	put("os", image.OS)
	put("os.version", image.OSVersion)
	put("os.features", strings.Join(image.OSFeatures, ","))
	put("architecture", image.Architecture)
	put("variant", image.Variant)
	put("author", image.Author)
	if image.Created != nil {
		put("created", image.Created.Format(time.RFC3339Nano))
	}
	put("stopSignal", image.Config.StopSignal)
	put("exposedPorts", strings.Join(slices.Sorted(maps.Keys(image.Config.ExposedPorts)), ","))
	for key, value := range image.Config.Labels {
		if key == "" || slices.ContainsFunc(orders(), func(prefix string) bool { return strings.HasPrefix(key, prefix) }) {
			o.Log.Warn("label of the image left out: a runtime would obey it", slog.String("label", key))
			continue
		}
		all[key] = value
	}
	maps.Copy(all, o.Annotations)
	if len(all) == 0 {
		return nil
	}
	return all
}
