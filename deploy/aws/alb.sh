#!/bin/sh
# An Application Load Balancer in front of the frontends of a fleet that run on EC2 instances. AWS CLI 1 or 2; every step says what it is for.
#
#   VPC=vpc-… SUBNETS='subnet-… subnet-…' SECURITY_GROUP=sg-… CERTIFICATE=arn:aws:acm:… INSTANCES='i-… i-…' ./alb.sh
#
# The security group lets callers reach port 443; that of the frontends lets this one reach port 4566. Prints the balancer's name.
set -eu
: "${VPC:?}" "${SUBNETS:?two of them, in different zones}" "${SECURITY_GROUP:?}" "${CERTIFICATE:?of ACM}" "${INSTANCES:?the frontends}"
NAME=${NAME:-emberbox}

# Health checks at their quickest: a frontend that stops answers /readyz with 503 and takes requests for `drain` longer, which is to
# be 15s or more here (two checks of 5 s, and what the balancer takes to act on them).
group=$(aws elbv2 create-target-group --name "$NAME" --vpc-id "$VPC" --target-type instance \
    --protocol HTTP --protocol-version HTTP1 --port 4566 \
    --health-check-protocol HTTP --health-check-path /readyz --matcher HttpCode=200 \
    --health-check-interval-seconds 5 --health-check-timeout-seconds 2 \
    --healthy-threshold-count 2 --unhealthy-threshold-count 2 \
    --query 'TargetGroups[0].TargetGroupArn' --output text)

# Who has the fewest requests gets the next, for they take from a millisecond to a quarter of an hour; what runs on a target that is
# taken out may finish.
aws elbv2 modify-target-group-attributes --target-group-arn "$group" --attributes \
    Key=load_balancing.algorithm.type,Value=least_outstanding_requests \
    Key=deregistration_delay.timeout_seconds,Value=960 > /dev/null

balancer=$(aws elbv2 create-load-balancer --name "$NAME" --type application --scheme internal \
    --subnets $SUBNETS --security-groups "$SECURITY_GROUP" \
    --query 'LoadBalancers[0].LoadBalancerArn' --output text)

# The longest function that Lambda documents runs 900 s, and nothing is answered before it is done. The Host header goes through as it
# came, for AWS's signatures cover it; header fields that an ALB finds odd as well.
aws elbv2 modify-load-balancer-attributes --load-balancer-arn "$balancer" --attributes \
    Key=idle_timeout.timeout_seconds,Value=920 \
    Key=routing.http.preserve_host_header.enabled,Value=true \
    Key=routing.http.drop_invalid_header_fields.enabled,Value=false > /dev/null

listener=$(aws elbv2 create-listener --load-balancer-arn "$balancer" --protocol HTTPS --port 443 \
    --certificates CertificateArn="$CERTIFICATE" --ssl-policy ELBSecurityPolicy-TLS13-1-2-2021-06 \
    --default-actions Type=forward,TargetGroupArn="$group" \
    --query 'Listeners[0].ListenerArn' --output text)

# These answer without a signature: they are for the operator.
priority=1
for path in /metrics /readyz /healthz; do
    aws elbv2 create-rule --listener-arn "$listener" --priority "$priority" --conditions Field=path-pattern,Values="$path" \
        --actions 'Type=fixed-response,FixedResponseConfig={StatusCode=404}' > /dev/null
    priority=$((priority + 1))
done

for instance in $INSTANCES; do
    aws elbv2 register-targets --target-group-arn "$group" --targets Id="$instance"
done
aws elbv2 describe-load-balancers --load-balancer-arns "$balancer" --query 'LoadBalancers[0].DNSName' --output text
