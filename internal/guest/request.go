package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"dray/internal/guest/api"
	"dray/internal/oci"
)

// Limits of what a request may say and a reply tells.
const (
	maxImageURL = 4096
	maxBundle   = 4095 // PATH_MAX without its NUL
	maxMessage  = 2048 // of an error, so that a reply is one small frame
)

// requestError reports a request that never reached the engine.
type requestError struct {
	code    codes.Code
	message string
}

// Error returns the message.
func (e *requestError) Error() string { return e.message }

func invalid(format string, args ...any) error {
	return &requestError{codes.InvalidArgument, fmt.Sprintf(format, args...)}
}

// check returns the bundle's path in its shortest form, or a [*requestError].
//
// It looks at the bundle by its path, for the sake of the message: who acts on
// the directory has to open it and look again.
func (o *Options) check(r *api.ImagePullRequest) (bundle string, err error) {
	image, bundle := r.GetImageUrl(), r.GetBundlePath()
	if err := checkText("image_url", image, maxImageURL); err != nil {
		return "", err
	}
	if err := checkText("bundle_path", bundle, maxBundle); err != nil {
		return "", err
	}
	reference, err := oci.ParseReference(image)
	if err != nil {
		return "", invalid("image_url: %v", err)
	}
	if o.RequireDigest && reference.Digest == "" {
		return "", invalid("image_url %q names a tag, but this service takes digests only: use NAME@sha256:DIGEST", image)
	}
	if reference.Transport != oci.Registry && !o.AllowLocal {
		return "", &requestError{codes.PermissionDenied, fmt.Sprintf("image_url %q names files of this machine, and the service takes images of registries only (--allow-local)", image)}
	}
	switch {
	case !filepath.IsAbs(bundle):
		return "", invalid("bundle_path %q is not absolute", bundle)
	case strings.Contains(bundle+"/", "/../"):
		return "", invalid("bundle_path %q contains \"..\"", bundle)
	}
	bundle = filepath.Clean(bundle)
	if bundle == "/" {
		return "", invalid("bundle_path is the root directory")
	}
	return bundle, o.checkDirectory(bundle)
}

func checkText(field, value string, limit int) error {
	switch {
	case value == "":
		return invalid("%s is empty", field)
	case len(value) > limit:
		return invalid("%s has %d bytes, more than %d", field, len(value), limit)
	case strings.ContainsFunc(value, unicode.IsControl):
		return invalid("%s %q contains a control character", field, value)
	}
	return nil
}

// checkDirectory makes sure that the bundle is a directory, and not by way of a
// symbolic link at its last component or out of the bundle root.
func (o *Options) checkDirectory(bundle string) error {
	info, err := o.lstat(bundle)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &requestError{codes.NotFound, fmt.Sprintf("bundle_path %q does not exist: its directory has to be there before the pull", bundle)}
	case err != nil:
		return invalid("bundle_path: %v", err)
	case info.Mode()&fs.ModeSymlink != 0:
		return invalid("bundle_path %q is a symbolic link", bundle)
	case !info.IsDir():
		return invalid("bundle_path %q is not a directory", bundle)
	}
	return nil
}

func (o *Options) lstat(bundle string) (fs.FileInfo, error) {
	if o.BundleRoot == "" {
		return os.Lstat(bundle)
	}
	below, err := filepath.Rel(o.BundleRoot, bundle)
	if err != nil || !filepath.IsLocal(below) || below == "." {
		return nil, fmt.Errorf("%q is not below %s", bundle, o.BundleRoot)
	}
	root, err := os.OpenRoot(o.BundleRoot)
	if err != nil {
		return nil, fmt.Errorf("open bundle root: %w", err)
	}
	defer func() { _ = root.Close() }()
	return root.Lstat(below)
}

var (
	userInfo = regexp.MustCompile(`(://)[^/@\s"']+@`)
	query    = regexp.MustCompile(`(https?://[^\s"'?]*\?)[^\s"']*`)
)

// oneLine makes text fit for a log's line: no control characters, no passwords
// and query strings of URLs, at most [maxMessage] bytes.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text)
	text = query.ReplaceAllString(userInfo.ReplaceAllString(text, "${1}…@"), "${1}…")
	if len(text) <= maxMessage {
		return text
	}
	cut := maxMessage
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
