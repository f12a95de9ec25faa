// Command contrast calls PullImage as Contrast's imagepuller defines it:
//
//	contrast SOCKET IMAGE BUNDLE
//
// It prints how many bytes of the reply its definition does not know.
// A refusal is printed as CODE: MESSAGE, with exit code 1. It is a program of its
// own because one program cannot hold two definitions of one name.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: contrast SOCKET IMAGE BUNDLE")
		os.Exit(2)
	}
	reply, err := pull(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		refused := status.Convert(err)
		_, _ = fmt.Fprintf(os.Stdout, "%s: %s\n", refused.Code(), refused.Message())
		os.Exit(1)
	}
	_, _ = fmt.Fprintln(os.Stdout, len(reply.ProtoReflect().GetUnknown()))
}

func pull(socket, image, bundle string) (*ImagePullResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	return NewImagePullServiceClient(client).PullImage(ctx, &ImagePullRequest{ImageUrl: image, BundlePath: bundle})
}
