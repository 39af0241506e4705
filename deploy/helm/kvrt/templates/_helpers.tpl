{{- define "kvrt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kvrt.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "kvrt.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kvrt.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kvrt.selector" -}}
app.kubernetes.io/name: {{ include "kvrt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kvrt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "kvrt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kvrt.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "kvrt.account" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kvrt.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The Secret that has the file of keys; empty: there is none. */ -}}
{{- define "kvrt.keys" -}}
{{- if .Values.keys.secret }}{{ .Values.keys.secret }}{{ else if .Values.keys.lines }}{{ include "kvrt.fullname" . }}-keys{{ end }}
{{- end }}

{{- /* What values.schema.json cannot say, because it is about several values at once. */ -}}
{{- define "kvrt.check" -}}
{{- $keys := include "kvrt.keys" . }}
{{- if and .Values.keys.secret .Values.keys.lines }}
{{- fail "keys.secret and keys.lines are two sources of keys: give one" }}
{{- end }}
{{- if and (not $keys) (not .Values.jwt.issuer) (not .Values.withoutKeys) }}
{{- fail "nobody is asked for a key: give keys.secret, keys.lines or jwt.issuer, or say withoutKeys: true if something else guards it" }}
{{- end }}
{{- if and .Values.withoutKeys (or $keys .Values.jwt.issuer) }}
{{- fail "withoutKeys: true contradicts keys and jwt: leave one out" }}
{{- end }}
{{- if ne (empty .Values.jwt.issuer) (empty .Values.jwt.audience) }}
{{- fail "jwt.issuer and jwt.audience go together" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.withoutKeys) (not .Values.serviceMonitor.secret) }}
{{- fail "metrics need a key of role metrics where there are keys: give serviceMonitor.secret" }}
{{- end }}
{{- end }}

{{- define "kvrt.args" -}}
- serve
- {{ .Values.model | quote }}
- --host=0.0.0.0
- --port={{ .Values.port }}
- --drain-seconds={{ .Values.drainSeconds }}
{{- if include "kvrt.keys" . }}
- --keys=/etc/kvrt/keys/keys
{{- end }}
{{- with .Values.jwt }}
{{- if .issuer }}
- {{ printf "--jwt-issuer=%s" .issuer | quote }}
- {{ printf "--jwt-audience=%s" .audience | quote }}
{{- if .role }}
- {{ printf "--jwt-role=%s" .role | quote }}
{{- end }}
{{- if .workspace }}
- {{ printf "--jwt-workspace=%s" .workspace | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.withoutKeys }}
- --without-keys
{{- end }}
{{- if .Values.profile }}
- --profile=/etc/kvrt/profile/profile.yaml
{{- end }}
{{- range $name, $value := .Values.options }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- --{{ $name }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%s" $name . | quote }}
{{- end }}
{{- else if kindIs "float64" $value }}
{{- /* As JSON: printf would write a million as 1e+06. */}}
- {{ printf "--%s=%s" $name ($value | toJson) | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}
